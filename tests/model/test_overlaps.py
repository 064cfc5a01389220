"""Two things at the same moment: one of them is in a transaction that stays open until the other has passed or waits.

Whatever the locks make of it, the answers and the tables must be those of one after the other, in one order or the
other; or of the second alone when the first is rolled back. A worker's look for work waits for nobody: it may also pass
over what is locked.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.model.stage import Stage, expected
from tests.model.test_transitions import KEY, Pair
from tests.model.world import World

pytestmark = pytest.mark.not_in(
    "encrypted", reason="works the tables in the engine's place, which encrypts on the way"
)

E = "e"
FIRST: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("offer", (E, "go", None)),
    ("cancel", (E, "first", False)),
    ("cancel", (E, "first", True)),
    ("resume", (E, False)),
    ("pause", ("r1", E, False, None)),
    ("pause", ("r1", None, False, None)),
    ("unpause", ("r0",)),
    ("restart", (E, 2)),
    ("retry_step", (E, KEY)),
    ("delete", (E,)),
)
SECOND: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("offer", (E, "go", None)),
    ("cancel", (E, "second", False)),
    ("cancel", (E, "second", True)),
    ("resume", (E, True)),
    ("pause", ("r2", E, False, None)),
    ("unpause", ("r0",)),
    ("restart", (E, None)),
    ("retry_step", (E, KEY)),
    ("delete", (E,)),
    ("tick", ("w2", 1, True, [])),
    ("reap", ()),
    ("together", ("w1", [("suspend", (E, None))])),
    ("together", ("w1", [("record", (E, ("one", 1, "step"), "completed"))])),
    ("together", ("w1", [("record", (E, ("nap", 1, "timer"), "waiting")), ("suspend", (E, 30))])),
    ("together", ("w1", [("retry", (E, 30, []))])),
    ("together", ("w1", [("block", (E,))])),
    ("together", ("w1", [("park", (E, "r0"))])),
    ("together", ("w1", [("release", (E,))])),
    ("together", ("w1", [("end", (E, "completed"))])),
)


@pytest.fixture(scope="module")
def stage(databases: Any, template: str) -> Iterator[Stage]:
    with databases.database(template) as name, contextlib.closing(Stage(databases.address(name))) as made:
        yield made


@pytest.mark.parametrize(
    "state",
    [
        *("scheduled", "ready", "running", "waiting", "blocked"),
        *("paused", "paused in a wait, a step has failed", "running under a rule"),
        *("waiting, a step has failed", "failed under a rule, a step has failed"),
    ],
)
def test_two_things_at_once_are_one_after_the_other(stage: Stage, state: str) -> None:
    """Events, cancels, resumes and repairs that are not committed so far, beside claims, takeovers and all that a
    worker writes."""
    for first in FIRST:
        for second in SECOND:
            for committed in (True, False) if first in FIRST[:2] else (True,):
                if second[0] == "together" and not state.startswith("running"):
                    continue  # only its holder writes; what others try is refused in any order
                pair = Pair(stage)
                pair.bring(state)
                if second[0] == "reap":
                    pair.expire()
                overlap(pair, first, second, committed=committed)


def overlap(pair: Pair, first: Any, second: Any, *, committed: bool) -> None:
    stage, world = pair.stage, pair.world
    told = stage.run(both(stage, first, second, committed=committed))
    found = stage.look()
    if found["executions"].get(E, {}).get("task") is None:
        # Of an event that was offered while it ended: nobody is there to be woken, and the next look drops it.
        found["wakeups"].pop((E, True, "event", None), None)
    orders = list(possible(world, first, second, committed=committed))
    what = f"{first} and {second}, {'committed' if committed else 'rolled back'}: {told}, {found}"
    assert any((told, found) == order for order in orders), f"{what}; it should be one of {orders}"


async def both(stage: Stage, first: Any, second: Any, *, committed: bool) -> tuple[Any, Any]:
    """The first one's transaction ends when the second one has ended or waits for it."""
    held = stage.desks[0].connection
    stage.desk = stage.desks[0]
    await held.execute("BEGIN")
    answer = await getattr(stage, first[0])(*first[1])
    stage.desk = stage.desks[1]
    other = asyncio.ensure_future(getattr(stage, second[0])(*second[1]))
    await stage.until_waiting(other)
    await held.execute("COMMIT" if committed else "ROLLBACK")
    stage.desk = stage.desks[0]
    return answer if committed else None, await other


def possible(world: World, first: Any, second: Any, *, committed: bool) -> Iterator[tuple[Any, Any]]:
    """Answers and tables, by the order of things."""

    def play(*sequence: tuple[str, Any], **passed_over: Any) -> tuple[dict[str, Any], Any]:
        seen = world.copy()
        answers = {}
        for who, (name, arguments) in sequence:
            more = passed_over if name == "tick" else {}
            answers[who] = getattr(seen, name)(*arguments, **more)
        return answers, expected(seen)

    for locked in ((), (E,)):
        if committed:
            for sequence in ([("a", first), ("b", second)], [("b", second), ("a", first)]):
                answers, rows = play(*sequence, locked=locked)
                yield (answers["a"], answers["b"]), rows
        else:
            answers, rows = play(("b", second), locked=locked)
            yield (None, answers["b"]), rows
