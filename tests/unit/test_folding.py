"""Folding: one change for each row of a statement, whatever has gathered."""

import datetime as dt
import uuid
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zart._engine.columns import all_columns, entry_columns, task_rows
from zart._engine.entries import (
    FINAL,
    Blocked,
    BodyRetry,
    Cancelled,
    Change,
    Completed,
    Ending,
    Entry,
    Failed,
    FailedAttempt,
    Key,
    Released,
    StepEnded,
    Suspended,
)
from zart._engine.folding import fold, is_plain, records_and_finishes, size

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
RUN, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)
_tokens = iter(range(1, 1 << 40))


def entry(name: str = "a", state: str = "completed", run: uuid.UUID = RUN, **fields: Any) -> Entry:
    fields.setdefault("task_id", run.int)
    return Entry(
        run_id=run, key=Key("", name, 1, "step"), state=state, done=None, token=next(_tokens), **fields
    )


def change(ending: Ending, run: uuid.UUID = RUN, **fields: Any) -> Change:
    return Change(
        task_id=run.int, execution_id=f"x{run.int}", run_id=run, epoch=1, ending=ending, done=None,
        token=next(_tokens), **fields,
    )  # fmt: skip


def attempt(name: str = "a", number: int = 1) -> FailedAttempt:
    return FailedAttempt(Key("", name, 1, "step"), number, 1, b"{}", NOW, NOW, None)


def test_the_later_of_two_entries_for_a_key_counts():
    """A step's start and its result may gather in one batch: the result is written, both are told."""
    running, completed = entry(state="running"), entry(state="completed")
    folded = fold([running, completed])
    assert folded.batch.entries == [completed]
    assert folded.batch.earlier == {completed.token: [running]}
    assert list(folded.batch.records()) == [running, completed]


def test_results_keep_their_order_whatever_came_before_them():
    """Steps that are shown as running may end in another order than they were shown in: that is the order of the log,
    and the one in which a body hears of them."""
    shown = [entry("a", "running"), entry("b", "running"), entry("c", "running")]
    ended = [entry("b", seq=1), entry("c", seq=2), entry("a", seq=3)]
    assert fold([*shown, *ended]).batch.entries == ended


def test_nothing_comes_after_a_final_entry():
    """What follows a final entry for its key is refused, as it would be in two batches."""
    final, late = entry(state="failed"), entry(state="completed")
    folded = fold([final, late])
    assert folded.batch.entries == [final]
    assert folded.refused == [late]


def test_the_same_key_of_two_runs_is_two_rows():
    first, second = entry(run=RUN), entry(run=OTHER)
    assert fold([first, second]).batch.entries == [first, second]


def test_what_an_earlier_entry_told_is_kept():
    """The result of a step may leave out what its start has told: the digest, the arguments, the time."""
    running = entry(state="running", digest=b"d", arguments="[1]", started_at=NOW)
    completed = entry(state="completed", finished_at=NOW)
    batch = fold([running, completed]).batch
    told = fold([entry(state="completed", digest=b"d", arguments="[1]", started_at=NOW)]).batch
    for column in ("digests", "arguments", "started"):
        assert entry_columns(batch)[column] == entry_columns(told)[column]


def test_failed_attempts_of_folded_entries_are_all_kept():
    """Two attempts that failed meanwhile are two rows, tied to the entry that is written."""
    first = entry(state="running", failed_attempt=attempt(number=1))
    second = entry(state="running", failed_attempt=attempt(number=2))
    columns = all_columns(fold([first, second]).batch)
    alone = all_columns(fold([entry()]).batch)
    assert len(columns["attempt_numbers"]) > len(alone["attempt_numbers"])
    assert columns["attempt_tokens"].count(second.token.to_bytes(8, "big")) == 2


def test_a_task_has_one_row():
    """A reset of the recoveries and an ending of one task are one change: a statement applies only one."""
    park = change(Suspended(seen=3, wake_at=NOW, waiting_for="x"))
    batch = fold([entry("a", clears_recoveries=True), entry("b"), park]).batch
    (row,) = task_rows(batch)
    assert (row.ending, row.clears, row.seen, row.token) == ("suspended", True, 3, park.token)


def test_a_task_whose_event_is_consumed_is_locked():
    (row,) = task_rows(fold([entry(event_id=7)]).batch)
    assert (row.ending, row.clears, row.token) == ("none", False, None)


def test_an_ending_that_touches_entries_waits_for_those_of_its_run():
    """A sweep of a run's entries cannot share a statement with entries of that run."""
    for ending in (
        Completed(result=b"1"),
        Failed(failure=b"{}"),
        Cancelled(failure=b"{}"),
        BodyRetry(attempt=2, not_before=NOW, floor=1, afresh=()),
        Blocked(failure=b"{}", what="crash-loop"),
    ):
        end = change(ending)
        folded = fold([entry(), end])
        assert folded.later == [end]
        assert folded.batch.changes == []
        assert fold([entry(run=OTHER), end]).batch.changes == [end]


def test_an_ending_that_leaves_entries_alone_shares_their_statement():
    for ending in (
        Suspended(seen=0, wake_at=None, waiting_for=None),
        Released(),
    ):
        end = change(ending)
        folded = fold([entry(), end])
        assert folded.batch.changes == [end]
        assert folded.later == []


def test_the_end_of_a_scheduled_step_waits_only_for_its_own_entry():
    """A busy body writes entries all the time: what it has given away must not wait until none is left."""
    end = change(StepEnded(key=Key("", "far", 1, "step"), state="completed"))
    assert fold([entry("near"), end]).batch.changes == [end]
    assert fold([entry("far", run=OTHER), end]).batch.changes == [end]
    assert fold([entry("far", state="waiting"), end]).later == [end]


def test_a_second_ending_of_a_task_is_refused():
    first, second = change(Released()), change(Released())
    folded = fold([first, second])
    assert folded.batch.changes == [first]
    assert folded.refused == [second]


def test_only_entries_that_concern_their_own_row_are_plain():
    assert is_plain(fold([entry("a"), entry("b", state="running")]).batch)
    for record in (
        entry(event_id=1),
        entry(clears_recoveries=True),
        entry(failed_attempt=attempt()),
        change(Released()),
    ):
        assert not is_plain(fold([record]).batch)


def test_entries_beside_final_endings_need_no_more_than_that():
    """Whatever else a batch holds needs the whole statement."""
    plain, final = entry("a"), change(Completed(result=b"1"), run=OTHER)
    assert records_and_finishes(fold([plain, final]).batch)
    third = uuid.UUID(int=3)
    for record in (
        entry("b", event_id=1),
        entry("b", clears_recoveries=True),
        entry("b", failed_attempt=attempt()),
        change(Released(), run=third),
        change(Completed(result=b"1"), run=third, parent_task=4),
        change(Completed(result=b"1"), run=third, notes=(("warning", "that"),)),
    ):
        assert not records_and_finishes(fold([plain, final, record]).batch)
    folded = fold([entry("a", state="running"), plain, final])
    assert folded.batch.earlier
    assert not records_and_finishes(folded.batch)


def test_a_record_weighs_what_the_user_gave():
    assert size(entry(result=b"12345", failure=b"123")) == 8
    assert size(entry(failed_attempt=attempt())) == 2
    assert size(change(Completed(result=b"123"))) == 3
    assert size(change(BodyRetry(attempt=2, not_before=NOW, floor=0, afresh=(attempt(), attempt())))) == 4


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["running", "waiting", "completed", "failed"]))
    )
)
def test_folding_is_what_the_database_would_do_one_by_one(told: list[tuple[str, str]]):
    """The entry that is left of each key is the one that would stand after as many statements as entries."""
    records = [entry(name, state) for name, state in told]
    stands: dict[Key, Entry] = {}
    for record in records:
        before = stands.get(record.key)
        if before is None or before.state not in FINAL:
            stands[record.key] = record
    folded = fold(records)
    assert {e.key: e for e in folded.batch.entries} == stands
    assert sorted(r.token for r in (*folded.batch.records(), *folded.refused)) == [r.token for r in records]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2), st.integers(0, 5))
def test_halves_hold_everything_once(names: list[str], changes: int):
    """Halving loses nothing and keeps entries before endings, so that a bad record is found alone."""
    records = [entry(name) for name in names] + [
        change(Released(), uuid.UUID(int=n + 1)) for n in range(changes)
    ]
    batch = fold(records).batch
    if len(batch) > 1:
        first, second = batch.halves()
        assert 0 < len(first) < len(batch)
        assert [*first.entries, *second.entries] == batch.entries
        assert [*first.changes, *second.changes] == batch.changes
        assert not (first.changes and second.entries)
