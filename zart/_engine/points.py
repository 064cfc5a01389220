"""Named points in the engine: the boundaries between which something can break.

A point says what is true when it is reached. Tests put a function into `listener` that kills the process there, stops
it, or cuts its connections, and then look whether another worker makes it good: see `tests/crashes`. Nobody listens
otherwise, and a point costs a call and a comparison.

A point stands before and after each statement that writes, and wherever what is true in memory and what is true in the
database part or meet. The names of `POINTS` are all that there are; a test compares them with the calls.
"""

from collections.abc import Callable, Mapping
from typing import Final

listener: Callable[[str], None] | None = None
"""Called with the name of each point that is reached; in the heartbeat's thread for those of `lease`."""


def reach(point: str) -> None:
    """Say that a point is reached."""
    if listener is not None:
        listener(point)


POINTS: Final[Mapping[str, str]] = {
    # A registration of a worker
    "registration.begin": "the worker has an id, and no rows so far",
    "registration.committed": "its rows stand; nothing was claimed under them",
    "lease.begin": "the lease is about to be renewed",
    "lease.committed": "it is renewed, or found to be gone; the worker has not heard of it",
    "idle.begin": "the row is about to say whether the worker wants notifications",
    "idle.committed": "it says so; the worker has not looked again since",
    # Taking work
    "claim.begin": "a claim is about to be sent; its token is remembered",
    "claim.committed": "rows may be owned by this worker; nobody has looked at them",
    "claim.read": "the histories of what was claimed are here; nothing runs",
    "claim.handed-out": "an execution is about to be replayed",
    "claim.goes-on": "a body that was kept in memory is about to go on from where it is",
    "return.begin": "what was claimed and nobody runs is about to be given back",
    "return.committed": "it is given back",
    # News
    "inbox.read": "news of executions that are held is here; they have not heard of it",
    "wakeups.begin": "committed wake-ups are about to be applied for everybody",
    "wakeups.read": "the cancels among them are known; nothing was applied",
    "wakeups.committed": "they are applied; nobody was told that work is ready",
    "sleepers.begin": "sleepers that are due are about to become ready",
    "sleepers.committed": "they are ready; nobody was told",
    # Rules that hold executions back
    "rules.begin": "the rules have changed, and are about to be read",
    "rules.read": "they are known; what they held or hold has not heard of it",
    "rules.ending": "rules whose time is over are about to be deleted",
    "rules.ended": "they are gone; what they held is still paused",
    "pauses.begin": "what was paused for rules that are gone is about to be let go",
    "pauses.committed": "it is ready; nobody was told",
    # Replaying
    "replay.delivering": "it is the turn of a recorded entry; the body has not got it",
    "replay.delivered": "the body has got it, and has not gone on",
    "replay.over": "the body rests at the end of the log; nothing runs live so far",
    "repair.begin": "all that is recorded was replayed, and a person wants some of it done again; nothing is set aside",
    "patch.answered": "the body has heard whether the run takes a change of the code; nothing of that is recorded",
    # Running a step
    "step.held": "a rule holds a step back; the body waits for the end of the rule, in memory alone",
    "step.begin": "an attempt is about to run",
    "step.returned": "the attempt has had its effect; nothing of that is recorded",
    "step.failed": "the attempt has failed; nothing of that is recorded",
    "step.waiting": "the failed attempt is with the journal; the next one waits for its time",
    "step.shown": "that the step runs for long is with the journal",
    "step.progressed": "what the step has told of its progress is with the journal",
    "step.started": "that a step is started that runs at most once is recorded; it has not run",
    # A step in a transaction
    "transaction.opened": "the transaction is open; the function has not run",
    "transaction.record.begin": "the function has done its writes; its record is about to be written",
    "transaction.record.sent": "the record and the COMMIT are sent; whether they are committed nobody knows",
    "transaction.record.answered": "both are committed; nobody was told",
    "transaction.seal.begin": "the answer was lost: the call's row is about to be sealed",
    "transaction.seal.answered": "the lost record stands, or never will; nobody was told which",
    # A step in a transaction of its own
    "own.ending": "the function has returned or raised, or is about to run again: what has it recorded?",
    "own.ended": "that is known, and its attempts so far can record nothing more",
    "own.recorded": "it has recorded its result, which the journal does not have",
    # Waiting
    "wait.armed": "the body waits for a time or an event, in memory alone",
    "wait.over": "an event or the time has ended a wait; nothing of that is recorded",
    "deadlines.begin": "the waits that have no row so far are about to go to the journal",
    # The journal: for each statement before it is sent, when it is sent, and when its answer is here
    "journal.record.begin": "entries are about to be written",
    "journal.record.sent": "the statement is sent; whether it is committed nobody knows",
    "journal.record.answered": "the entries are committed; nobody was told",
    "journal.record-and-end.begin": "entries and endings are about to be written",
    "journal.record-and-end.sent": "the statement is sent; whether it is committed nobody knows",
    "journal.record-and-end.answered": "they are committed; nobody was told",
    "journal.finish.begin": "final endings are about to be written",
    "journal.finish.sent": "the statement is sent; whether it is committed nobody knows",
    "journal.finish.answered": "the executions have ended; nobody was told",
    "journal.begin-anew.begin": "executions are about to begin anew",
    "journal.begin-anew.sent": "the statement is sent; whether it is committed nobody knows",
    "journal.begin-anew.answered": "they have begun anew, and are ready; nobody was told",
    "journal.park.begin": "what a rule stops is about to be given back as paused",
    "journal.park.sent": "the statement is sent; whether it is committed nobody knows",
    "journal.park.answered": "it is paused, or ready since the rule has ended; nobody was told",
    "journal.acknowledged": "everybody whose record was in the batch was told",
    "journal.read-back.begin": "some records were not returned: they are about to be looked for",
    "journal.read-back.sent": "the question is sent",
    "journal.read-back.answered": "it is known which of them stand",
    "journal.now.begin": "a batch that failed again and again was found committed; what is the time?",
    "journal.now.sent": "the question is sent",
    "journal.now.answered": "the time is known; nobody was told of the batch",
    "journal.announce.begin": "clients and idle workers are about to be told of endings",
    "journal.announce.sent": "the statement is sent",
    "journal.announce.answered": "they were told",
    # Delivering to the body
    "input.acknowledged": "an entry is committed; the body has not got it",
    "input.delivering": "the body rests, and is about to get the entry whose turn it is",
    "input.delivered": "the body has got an entry, and has not gone on",
    "cancel.noticed": "a cancel is about to become an entry of the log",
    "limit.passed": "the execution's time limit is about to become an entry of the log",
    "cancel.delivering": "the entry is committed; the body is about to be cancelled",
    "cancel.delivered": "the body is cancelled, and has not gone on",
    # Undoing
    "saga.undoing": "a block has failed, and nothing within runs any more; nothing of it is undone",
    "saga.undone": "everything in it is undone and recorded; the body has not heard of it",
    # Work that is given away, and what comes back
    "work.given": "a scheduled step or a child is with the journal; nothing of it is committed",
    "child.begin": "a child whose id its parent has chosen is about to be started",
    "child.committed": "it is there, or its id is another's; nobody was told",
    "arrival.numbering": "what was given away has ended elsewhere; that has no place in the log so far",
    "body.outlived": "the body has ended before what it has given away; nothing of that is recorded",
    # Endings
    "suspension.begin": "the body is parked for certain; nothing of that is recorded",
    "suspension.kept": "the suspension is with the journal, and the body stays in memory",
    "suspension.unwinding": "the suspension is with the journal, and the body is about to unwind",
    "body.over": "the body and its branches have ended; nothing of that is recorded",
    "body.retrying": "the body is to run again; nothing of that is recorded",
    "failure.begin": "the body has failed for good, and has a handler; nothing of that is recorded",
    "failure.delivered": "the failure is recorded; the handler is about to run",
    "ending.begin": "an ending is about to go to the journal",
    "ending.acknowledged": "the ending is committed, or refused; the worker still holds the execution in memory",
    "release.begin": "an execution is about to be given back for another worker to go on",
    # A worker's end
    "shutdown.begin": "the worker is to stop; what it holds still runs",
    "shutdown.unclaimed": "what was claimed and not begun is given back",
    "shutdown.drained": "everything is given back or ended",
    "leaving.begin": "the rows are about to go; nothing is held under them",
    "leaving.committed": "the rows are gone",
    "fenced.begin": "the registration was taken away; what was held under it still runs",
    "fenced.dropped": "all of that is dropped",
    # Taking over
    "reaping.begin": "expired workers are about to be looked for",
    "reaping.committed": "their rows are gone; what they held still names them",
    "takeover.begin": "owners without rows were found; what they held is about to be freed",
    "takeover.committed": "it is ready for anybody",
}
"""Every point, and what is true when it is reached."""
