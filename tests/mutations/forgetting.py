"""Mutations of what a worker asks another server for: see zart/_engine/continuity.py."""

from tests.mutations.mutation import Edit, Mutation

CONTINUITY = "zart/_engine/continuity.py"
WORKERS = "zart/_postgres/sql/workers.sql"

_SERVERS = "tests/acceptance/test_forgetful_servers.py::"
_CONTINUITY = "tests/integration/test_continuity.py::"
_REFUSED = f"{_CONTINUITY}test_a_server_that_lacks_something_is_refused"
_GONE_ON = f"{_CONTINUITY}test_what_has_gone_on_since_is_not_forgotten"

FORGETTING = (
    Mutation(
        name="other-server-trusted",
        breaks="Nothing is written on another server before it was asked what it has.",
        edits=(
            Edit(
                file="zart/_engine/registration.py",
                old="                await self._continuity.check(connection)\n",
                new="                pass\n",
            ),
        ),
        tests=(
            f"{_SERVERS}test_a_forgotten_record_is_made_again",
            f"{_SERVERS}test_what_a_step_had_written_and_was_forgotten_is_written_again",
        ),
    ),
    Mutation(
        name="other-server-unseen-by-the-heartbeat",
        breaks="A worker that writes nothing finds out with its heartbeat that another server answers.",
        edits=(
            Edit(
                file="zart/_engine/lease.py",
                old="        if self._lease.server != server:\n            self._on_other_server()\n",
                new="",
            ),
        ),
        tests=("tests/integration/test_lease.py::test_a_heartbeat_tells_of_another_server",),
    ),
    Mutation(
        name="forgotten-records-unseen",
        breaks="A record that was confirmed and is not there is noticed.",
        edits=(Edit(file=CONTINUITY, old="        self.records[writer] = last\n", new=""),),
        tests=(f"{_REFUSED}[a record]", f"{_REFUSED}[an end]"),
    ),
    Mutation(
        name="older-records-believed",
        breaks="An earlier state of a record does not stand for the one that was confirmed.",
        edits=(Edit(file=WORKERS, under="forgotten", old=" AND s.token >= k.token", new=""),),
        tests=(f"{_REFUSED}[a record, of which an earlier state stands]",),
    ),
    Mutation(
        name="records-of-others-believed",
        breaks="What another worker has recorded does not stand for what this one had.",
        edits=(Edit(file=WORKERS, under="forgotten", old="s.token >> 24 = k.token >> 24 AND ", new=""),),
        tests=(f"{_REFUSED}[a record, which another worker has made]",),
    ),
    Mutation(
        name="forgotten-suspensions-unseen",
        breaks="An execution that was given back, and is held by this worker again, was forgotten.",
        edits=(
            Edit(
                file=WORKERS,
                under="forgotten",
                old="\n            OR t.epoch = c.epoch AND t.owner IS NOT NULL",
                new="",
            ),
        ),
        tests=(f"{_REFUSED}[a suspension]",),
    ),
    Mutation(
        name="forgotten-claims-unseen",
        breaks="A claim that was confirmed and is not there is noticed.",
        edits=(
            Edit(
                file=CONTINUITY,
                old="            held = self._held()\n",
                new="            held: Any = []\n",
            ),
        ),
        tests=(f"{_REFUSED}[a claim]",),
    ),
    Mutation(
        name="records-apart-unseen",
        breaks="A record on a connection of its own is asked for until the journal's stand for it.",
        edits=(Edit(file=CONTINUITY, old="apart[0].confirmed_at < sent_at", new="True"),),
        tests=(f"{_CONTINUITY}test_what_was_sent_before_a_record_apart_does_not_stand_for_it",),
    ),
    Mutation(
        name="refused-records-confirmed",
        breaks="What the journal refused was not confirmed.",
        edits=(
            Edit(
                file="zart/_engine/sending.py",
                old="        while written and written[-1].token in lost:\n            written.pop()\n",
                new="",
            ),
        ),
        tests=(f"{_GONE_ON}[_refused]",),
    ),
    Mutation(
        name="forgotten-after-one-look",
        breaks="What has ended while the first look was on its way is not missed.",
        edits=(Edit(file=CONTINUITY, old="_LOOKS: Final = 3", new="_LOOKS: Final = 1"),),
        tests=(f"{_CONTINUITY}test_what_is_missing_must_be_missing_each_time",),
    ),
    Mutation(
        name="ids-of-workers-given-out-again",
        breaks="Two workers never have the same id, whatever the sequence gives.",
        edits=(Edit(file=WORKERS, under="next_worker_id", old=" + floor(random() * 10000)::bigint", new=""),),
        tests=(f"{_CONTINUITY}test_ids_of_workers_are_not_given_out_again",),
    ),
)
