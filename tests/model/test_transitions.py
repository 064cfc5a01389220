"""Every state with everything that can be done to it: what is in the table happens, all else leaves the rows alone."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.model.comparison import Comparison
from tests.model.stage import Activity, Stage
from tests.model.world import Hold
from zart.state import TASK_TRANSITIONS, TRANSITIONS, ExecutionStatus

pytestmark = pytest.mark.not_in(
    "encrypted", reason="works the tables in the engine's place, which encrypts on the way"
)

E = "e"
KEY = ("one", 1, "step")

LIVE = ("ready", "running", "taken over", "went elsewhere", "claimed again", "cancelling")
FINAL = ("completed", "failed", "cancelled")
BEFORE_THE_RULE = {
    "paused": "scheduled",
    "paused before its time": "delayed",
    "paused in a wait": "waiting",
    "paused in a retry": "retrying",
    "stopped before a step": "running",
    "held back": "scheduled",
    "running under a rule": "running",
    "cancelling under a rule": "ready",
    "blocked under a rule": "blocked",
    "failed under a rule": "running",
}
"""What it was before the rule r0 came."""
UNDER_A_RULE = ("held back", "running under a rule", "cancelling under a rule", "blocked under a rule")
"""The rule covers it, and the row says nothing of that."""
ENDED = (*FINAL, "failed under a rule")
PAUSED = tuple(state for state in BEFORE_THE_RULE if state not in (*UNDER_A_RULE, *ENDED))
STATES: tuple[str, ...] = (
    *("nothing", "scheduled", "delayed", *LIVE, "waiting", "retrying", "blocked"),
    *(*PAUSED, *UNDER_A_RULE, *ENDED),
)
MOVES: dict[tuple[str, str], str] = {
    ("nothing", "start"): "scheduled",
    ("nothing", "start from SQL"): "scheduled",
    # Work is taken, and what is due becomes work.
    ("scheduled", "claim"): "running",
    ("ready", "claim"): "running",
    ("delayed", "time"): "scheduled",
    ("waiting", "time"): "running",
    ("retrying", "time"): "running",
    # News wakes what waits for news; a delay and the pause before a retry go by the clock.
    ("waiting", "offer"): "running",
    ("waiting", "offer from SQL"): "running",
    # A cancel ends what has nothing to unwind, and wakes what has.
    **{
        (state, how): "cancelled"
        for state in ("scheduled", "delayed", "blocked", "blocked under a rule")
        for how in ("cancel", "cancel from SQL")
    },
    **{(state, how): "running" for state in ("waiting", "retrying") for how in ("cancel", "cancel from SQL")},
    **{
        (state, "cancel by force"): "cancelled"
        for state in (
            *("scheduled", "delayed", "ready", "running", "taken over", "went elsewhere", "claimed again"),
            *("waiting", "retrying", "blocked", "cancelling", *PAUSED, *UNDER_A_RULE),
        )
    },
    ("blocked", "resume"): "running",
    ("blocked under a rule", "resume"): "paused",
    # A rule holds back what nobody has in his hands, and its end lets that go on from where it was.
    **{
        (state, how): "paused"
        for state in ("scheduled", "delayed", "ready", "waiting", "retrying")
        for how in ("pause", "pause all")
    },
    ("paused", "unpause"): "scheduled",
    ("paused before its time", "unpause"): "scheduled",
    ("paused in a wait", "unpause"): "running",
    ("paused in a retry", "unpause"): "waiting",
    ("stopped before a step", "unpause"): "running",
    ("held back", "unpause"): "scheduled",
    # What a worker has in its hands is held back once it lets go.
    **{
        ("running under a rule", how): "paused"
        for how in ("suspend", "retry", "meet", "release", "park", "reap")
    },
    ("running under a rule", "block"): "blocked",
    ("running under a rule", "complete"): "completed",
    ("running under a rule", "fail"): "failed",
    ("running under a rule", "end as cancelled"): "cancelled",
    # A cancel goes before it.
    **{
        (state, how): "cancelled"
        for state in ("paused", "paused before its time", "held back")
        for how in ("cancel", "cancel from SQL")
    },
    **{
        (state, how): "running"
        for state in ("paused in a wait", "paused in a retry", "stopped before a step")
        for how in ("cancel", "cancel from SQL")
    },
    # Only its holder ends an execution or parks it.
    ("running", "suspend"): "waiting",
    ("running", "retry"): "waiting",
    ("running", "block"): "blocked",
    ("running", "complete"): "completed",
    ("running", "fail"): "failed",
    ("running", "end as cancelled"): "cancelled",
    # Once it is to be cancelled it ends as cancelled, however its body ends.
    ("cancelling", "block"): "cancelled",
    ("cancelling", "complete"): "cancelled",
    ("cancelling", "fail"): "cancelled",
    ("cancelling", "end as cancelled"): "cancelled",
}
"""The status after it, as a reader sees it, by the state before."""
for _state in (
    *("ready", "running", "taken over", "went elsewhere", "claimed again", "cancelling"),
    *("waiting", "retrying", "blocked", "completed", "failed", "cancelled"),
):
    # Another run may be begun at any time.
    MOVES[_state, "restart"] = "scheduled"
# A rule that covers the execution covers each of its runs, but a rule over steps has nothing to hold back so far.
for _state in (
    "running under a rule",
    "cancelling under a rule",
    "blocked under a rule",
    "failed under a rule",
):
    MOVES[_state, "restart"] = "paused"
MOVES["stopped before a step", "restart"] = "scheduled"
for _state in ENDED:
    MOVES[_state, "delete"] = "nothing"

HAPPENS = {
    # Allowed, and the status stays as it is.
    *(
        (state, how)
        for state in (*LIVE, "scheduled", "delayed", "retrying", "blocked", *PAUSED, *UNDER_A_RULE)
        for how in ("offer", "offer from SQL")
    ),
    # A rule is made, whatever it meets.
    *((state, "pause all") for state in STATES),
    *((state, "pause") for state in STATES if state not in ("nothing", *ENDED)),
    *((state, "unpause") for state in (*UNDER_A_RULE, "failed under a rule") if state != "held back"),
    *(("running under a rule", how) for how in ("cancel", "cancel from SQL")),
    # There is no such rule, or it stops nothing: the execution is given back.
    *((state, "park") for state in ("running", "cancelling")),
    # What a rule over all others holds back is claimed when it is to be cancelled.
    ("cancelling under a rule", "claim"),
    *((state, how) for state in LIVE if state != "cancelling" for how in ("cancel", "cancel from SQL")),
    ("running", "release"),
    # The body runs again at once, be it because somebody wanted that.
    ("running", "meet"),
    ("cancelling", "meet"),
    *((state, "restart") for state in ("scheduled", "delayed", "held back", *PAUSED)),
    ("cancelling", "release"),
    ("cancelling", "retry"),
    ("cancelling", "suspend"),
    # The holder's lease has run out: another may take it.
    ("running", "reap"),
    ("cancelling", "reap"),
    ("claimed again", "reap"),
    # A record is fenced by its worker's row alone; nobody reads the journal of an execution that has ended.
    *(
        (state, "record")
        for state in (
            *LIVE,
            "scheduled",
            "delayed",
            "waiting",
            "retrying",
            "blocked",
            *(*PAUSED, *UNDER_A_RULE, *ENDED),
        )
        if state != "taken over"
    ),
}
FAILED_STEP = {
    f"{state}, a step has failed": state
    for state in (
        *("running", "waiting", "blocked", "completed", "failed", "cancelled"),
        *("paused in a wait", "stopped before a step"),
        *("running under a rule", "blocked under a rule", "failed under a rule"),
    )
}
"""States with a record of a step that has failed for good, and what they are like otherwise."""
REPAIRED = {
    "asked for while it was held": "running",
    "claimed to be repaired": "running",
    "restarted while it was held": "scheduled",
    "retried after the end": "scheduled",
    "asked for while it was paused": "paused in a wait",
    "claimed to be repaired under a rule": "running under a rule",
    "restarted while it was paused": "held back",
    "retried after the end, under a rule": "held back",
}
BEFORE_THE_RULE |= {
    **{
        state: f"{BEFORE_THE_RULE[like]}, a step has failed"
        for state, like in FAILED_STEP.items()
        if like in BEFORE_THE_RULE
    },
    "asked for while it was paused": "waiting, a step has failed",
    "claimed to be repaired under a rule": "claimed to be repaired",
    "restarted while it was paused": "waiting",
    "retried after the end, under a rule": "running, a step has failed",
}
STATES += (*FAILED_STEP, *REPAIRED)
for _state, _like in (FAILED_STEP | REPAIRED).items():
    MOVES.update({(_state, how): after for (state, how), after in MOVES.items() if state == _like})
    HAPPENS |= {(_state, how) for state, how in HAPPENS if state == _like and how != "record"}
for _state, _like in FAILED_STEP.items():
    if (_like, "restart") in MOVES:
        MOVES[_state, "rerun"] = MOVES[_like, "restart"]
    if _like == "failed":
        MOVES[_state, "retry a step"] = "scheduled"
    elif _like in ("waiting", "blocked"):
        MOVES[_state, "retry a step"] = "running"
    elif _like in ("blocked under a rule", "failed under a rule"):
        MOVES[_state, "retry a step"] = "paused"
HAPPENS |= {
    ("paused in a wait, a step has failed", "rerun"),
    # Whoever holds it is told, and so is whoever holds it next, once the rule has ended.
    ("running, a step has failed", "retry a step"),
    ("running under a rule, a step has failed", "retry a step"),
    ("claimed to be repaired", "retry a step"),
    ("claimed to be repaired under a rule", "retry a step"),
    ("paused in a wait, a step has failed", "retry a step"),
    ("stopped before a step, a step has failed", "retry a step"),
    # It goes on at once: to do again what was asked for.
    *(("asked for while it was held", how) for how in ("suspend", "complete", "fail")),
    *(("claimed to be repaired", how) for how in ("complete", "fail")),
    # Asked for twice: it is only told in the history.
    ("asked for while it was held", "retry a step"),
    ("asked for while it was paused", "retry a step"),
    *((state, "rerun") for state in ("asked for while it was paused", "retried after the end")),
    *((state, "retry a step") for state in REPAIRED if state.startswith("retried after the end")),
    ("retried after the end, under a rule", "rerun"),
    # Into the run that the first worker held, which nobody reads on.
    ("restarted while it was held", "record"),
    ("restarted while it was paused", "record"),
}
for _how in ("suspend", "complete", "fail"):
    del MOVES["asked for while it was held", _how]
for _how in ("complete", "fail"):
    del MOVES["claimed to be repaired", _how]
MOVES |= {
    ("asked for while it was held", "rerun"): "scheduled",
    ("claimed to be repaired", "rerun"): "scheduled",
    ("claimed to be repaired under a rule", "rerun"): "paused",
    # It goes on to do again what was asked for, but not before the rule has ended.
    **{("claimed to be repaired under a rule", how): "paused" for how in ("complete", "fail")},
}
for _state in ("restarted while it was paused", "retried after the end, under a rule"):
    # The rule names it by its id: whoever claims it finds out, and gives it back before its body runs.
    MOVES[_state, "claim"] = "running"
REFUSED = (
    *(None, "lost", False, "unknown", "finished", "conflict", "existing", [], ["lost"]),
    *("no such record", "live"),
)
"""The clear words for what has not happened. None: nothing was there to be done."""


class Pair(Comparison):
    """One execution, and two workers of which the first one has, had, or never had it."""

    # ------------------------------------------------------------ the states

    def bring(self, state: str) -> None:
        self.compares = False
        self.reach(BEFORE_THE_RULE.get(state, state))
        if state in BEFORE_THE_RULE:
            self.hold_back(state)
        self.compares = True
        self.compare()

    def reach(self, state: str) -> None:
        self.do("register", "w1")
        self.do("register", "w2")
        if state == "nothing":
            return
        self.do("start", E, 1, 60 if state == "delayed" else 0)
        self.compare()
        if state in ("scheduled", "delayed"):
            self.forge()
            return
        self.claim("w1")
        if state in FAILED_STEP or (state in REPAIRED and state != "restarted while it was held"):
            self.end("record", KEY, "failed")
        hold = self.remember()
        self.go_on(FAILED_STEP.get(state, state))
        if state != "claimed to be repaired":
            self.recall(*hold)

    def go_on(self, state: str) -> None:
        match state:
            case "ready":
                self.end("release")
            case "taken over":
                self.expire()
                self.do("reap")
                self.claim("w2")
            case "went elsewhere":
                self.end("suspend", -1)
                self.claim("w2")
            case "claimed again":
                self.end("suspend", -1)
                self.claim("w1")
            case "waiting":
                self.end("suspend", 30)
            case "retrying":
                self.end("retry", 30, [])
            case "blocked":
                self.end("block")
            case "cancelling":
                self.do("cancel", E, "enough", False)
            case "completed" | "failed" | "cancelled" as status:
                self.end("end", status)
            case _:
                self.repair(state)

    def repair(self, state: str) -> None:
        match state:
            case "asked for while it was held":
                self.do("retry_step", E, KEY)
            case "claimed to be repaired":
                self.end("suspend", 30)
                self.do("retry_step", E, KEY)
                self.claim("w1")
            case "restarted while it was held":
                self.do("restart", E, 2)
            case "retried after the end":
                self.end("end", "failed")
                self.do("retry_step", E, KEY)
            case _:
                assert state == "running"

    def hold_back(self, state: str) -> None:
        """The rule r0 comes."""
        like = FAILED_STEP.get(state, state)
        if like == "cancelling under a rule":
            self.do("cancel", E, "enough", False)
        over_all = like in ("held back", "cancelling under a rule")
        self.do("pause", "r0", None if over_all else E, like == "stopped before a step", None)
        match like:
            case "stopped before a step":
                self.end_keeping("park", "r0")
            case "failed under a rule":
                self.end_keeping("end", "failed")
            case "asked for while it was paused":
                self.do("retry_step", E, KEY)
            case "restarted while it was paused":
                self.do("restart", E, 2)
            case "retried after the end, under a rule":
                self.end_keeping("end", "failed")
                self.do("retry_step", E, KEY)

    def end_keeping(self, name: str, *arguments: Any) -> None:
        """The first worker's hold ends, and it goes on believing that it has it."""
        hold = self.remember()
        self.end(name, *arguments)
        self.recall(*hold)

    def claim(self, worker: str) -> None:
        assert E in self.do("tick", worker, 1, True, [])["claims"]

    def remember(self) -> tuple[Hold, Activity]:
        hold = self.world.workers["w1"].holds[E]
        return dataclasses.replace(hold, known=list(hold.known)), self.stage.hands["w1"].holds[E]

    def recall(self, hold: Hold, activity: Activity) -> None:
        """The first worker believes what it believed when it had claimed it."""
        self.world.workers["w1"].holds[E] = hold
        self.stage.hands["w1"].holds[E] = activity

    def forge(self) -> None:
        """The first worker believes to hold what it never claimed."""
        self.stage.forge("w1", E)
        execution = self.world.executions[E]
        self.world.workers["w1"].holds[E] = Hold(
            task=execution.last, run=execution.run, epoch=0, signal=0, seq=0, known=[], clears=False
        )

    def expire(self) -> None:
        self.stage.run(self.stage.expire("w1"))
        self.world.workers["w1"].expired = True

    # ------------------------------------------------------------ the operations

    def again(self) -> Any:
        return self.do("start", E, 2, 0) if E in self.world.executions else None

    def taken(self) -> Any:
        return list(self.do("tick", "w2", 1, False, [])["claims"])

    def reaped(self) -> Any:
        self.expire()
        return self.do("reap")

    def applied(self, name: str, *arguments: Any) -> Any:
        told = self.do(name, E, *arguments)
        self.do("tick", "w2", 0, False, [])
        return told

    def time(self) -> Any:
        """A minute and a half go by, and sleepers that are due are woken."""
        before = self.stage.look()
        self.world.now += 90
        self.stage.run(self.stage.move(self.world.now))
        self.do("tick", "w2", 0, False, [])
        return None if self.stage.look() == before else "woken"

    def unpaused(self) -> Any:
        """The rule has ended, and a worker looks."""
        told = self.do("unpause", "r0")
        self.do("tick", "w2", 0, False, [])
        return told

    def meet(self) -> Any:
        """The body is to run again, as it was asked for when it was claimed."""
        hold = self.world.workers["w1"].holds.get(E)
        again = [KEY] if hold is not None and KEY in hold.run.records else []
        return self.journal("retry", 0, again, True)

    def journal(self, name: str, *arguments: Any) -> Any:
        if E not in self.world.workers["w1"].holds:
            return None
        (told,) = self.end(name, *arguments)
        return told

    def end(self, name: str, *arguments: Any) -> Any:
        return self.do("together", "w1", [(name, (E, *arguments))])

    # ------------------------------------------------------------ looking

    def status(self) -> str:
        return self.world.shown(E)[0] if E in self.world.executions else "nothing"

    def task(self) -> str:
        task = self.world.task(E)
        return task.state if task is not None else "none"


OPERATIONS: dict[str, Callable[[Pair], Any]] = {
    "start": lambda pair: pair.do("start", E, 1, 0),
    "start from SQL": lambda pair: pair.do("sql_start", E, 1, 0),
    "start with another input": Pair.again,
    "offer": lambda pair: pair.do("offer", E, "go", None),
    "offer from SQL": lambda pair: pair.applied("sql_offer", "go", None),
    "cancel": lambda pair: pair.do("cancel", E, "why not", False),
    "cancel from SQL": lambda pair: pair.applied("sql_cancel", "why not"),
    "cancel by force": lambda pair: pair.do("cancel", E, "now", True),
    "resume": lambda pair: pair.do("resume", E, False),
    "pause": lambda pair: pair.do("pause", "r1", E, False, None),
    "pause all": lambda pair: pair.do("pause", "r1", None, False, None),
    "unpause": Pair.unpaused,
    "claim": Pair.taken,
    "time": Pair.time,
    "reap": Pair.reaped,
    "record": lambda pair: pair.journal("record", KEY, "completed"),
    "suspend": lambda pair: pair.journal("suspend", pair.world.now + 30),
    "retry": lambda pair: pair.journal("retry", 30, []),
    "block": lambda pair: pair.journal("block"),
    "release": lambda pair: pair.journal("release"),
    "park": lambda pair: pair.journal("park", "r0"),
    "complete": lambda pair: pair.journal("end", "completed"),
    "fail": lambda pair: pair.journal("end", "failed"),
    "meet": Pair.meet,
    "restart": lambda pair: pair.do("restart", E, None),
    "rerun": lambda pair: pair.do("rerun", E, KEY),
    "retry a step": lambda pair: pair.do("retry_step", E, KEY),
    "delete": lambda pair: pair.do("delete", E),
    "end as cancelled": lambda pair: pair.journal("end", "cancelled"),
}


@pytest.fixture(scope="module")
def stage(databases: Any, template: str) -> Iterator[Stage]:
    """One for all pairs: each begins with empty tables."""
    with databases.database(template) as name, contextlib.closing(Stage(databases.address(name))) as made:
        yield made


@pytest.mark.parametrize("state", STATES)
def test_what_is_in_the_table_happens_and_nothing_else(stage: Stage, state: str) -> None:
    """Through the real statements and functions. What is refused says so in clear words and changes no row."""
    for operation, act in OPERATIONS.items():
        pair = Pair(stage)
        pair.bring(state)
        rows, status, task = stage.look(), pair.status(), pair.task()
        told = act(pair)
        what = f"{operation!r} in state {state!r} answered {told!r}"
        assert pair.status() == MOVES.get((state, operation), status), what
        if (state, operation) in MOVES or (state, operation) in HAPPENS:
            assert told not in REFUSED, what
        else:
            assert told in REFUSED, what
            found = stage.look()
            if operation == "reap":  # the first worker has gone, and the execution was not its own
                found["workers"]["w1"] = rows["workers"].get("w1", 3)
                rows["workers"]["w1"] = found["workers"]["w1"]
            assert found == rows, what
        check_tables(status, pair.status(), task, pair.task(), what)


def check_tables(status: str, status_after: str, task: str, task_after: str, what: str) -> None:
    """Both changes are in the tables that the documents show."""
    if status != status_after and "nothing" not in (status, status_after):
        assert ExecutionStatus(status_after) in TRANSITIONS[ExecutionStatus(status)], what
    if task != task_after:
        assert task_after in TASK_TRANSITIONS[task], what


def test_each_transition_of_a_task_was_seen() -> None:
    """The table allows nothing that no pair above has done."""
    done = {
        *(("none", state) for state in ("ready", "waiting")),
        *(("ready", state) for state in ("running", "paused", "none")),
        *(("running", state) for state in ("ready", "waiting", "paused", "blocked", "none")),
        *(("waiting", state) for state in ("ready", "paused", "none")),
        *(("paused", state) for state in ("ready", "waiting", "none")),
        *(("blocked", state) for state in ("ready", "none")),
    }
    assert {(before, after) for before, afters in TASK_TRANSITIONS.items() for after in afters} == done
