"""Rows that somebody has edited by hand: one execution ends in a state that says why, and all others go on.

Executions are parked in the middle of their work while no worker runs; each is damaged in another way; its event comes,
and a worker takes all of them up at once. So a row that stops a worker stops the innocent, too, and is found out.
"""

import contextlib
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import psycopg
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import zart
from tests.fuzz.damages import DAMAGES, STAYS, Damage
from tests.fuzz.examples import FACTOR, examples
from tests.fuzz.stage import ENDS, Stage
from tests.support.databases import Databases
from tests.support.running import until
from zart import durable, step
from zart_cli.main import cli

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Do not use the `random` module inside strategies"  # the worker beside the tests does
    ),
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),  # in the text of that warning
    pytest.mark.not_in("twice", reason="a log that a hand has damaged need not lead to the same end twice"),
]


class Order(msgspec.Struct):
    number: int


class Refused(Exception):
    pass


@step("first")
async def first(number: int) -> int:
    return number + 1


@step("fragile", retry="fixed(1, 1ms)")
async def fragile() -> None:
    raise Refused("no")


@durable("victim", timeout="50h")
async def victim(order: Order) -> int:
    one = await first(order.number)
    with contextlib.suppress(Refused):
        await fragile()
    async with zart.timeout("40h"):
        two = await zart.wait_for_event("go", int, timeout="30h")
    return one + await first(two)


@pytest.fixture(scope="module")
def ward(databases: Databases, template: str) -> Iterator[Stage]:
    with databases.database(template) as name, Stage(databases.address(name), victim) as running:
        yield running


_REFUSED = (psycopg.IntegrityError, psycopg.DataError, psycopg.errors.ProgramLimitExceeded)
"""What a type, a constraint or an index says to some damages: they never get into a row."""
_BY_HAND = ("tasks: state = 'blocked'", "executions: status", "executions: failure")
"""Somebody has said that it is blocked or has failed: nothing says why."""
_numbers = itertools.count(1)


def harm(ward: Stage, patients: Sequence[Sequence[Damage]]) -> Mapping[str, Sequence[Damage]]:
    """Executions with these damages, taken up by a worker; those which the tables themselves refuse are left out."""
    ids = {f"victim-{next(_numbers)}": damages for damages in patients}
    inputs = {id: Order(number) for number, id in enumerate(ids, start=1)}
    ward.call(ward.client.start_many, victim, inputs)

    def parked() -> bool:
        found = ward.rows(
            "SELECT count(*) FROM zart_tasks WHERE execution_id = ANY (%s) AND state = 'waiting'",
            (list(ids),),
        )
        return found == [(len(ids),)]

    ward.run(lambda: until(parked, "all of them wait", within=40))
    ward.stop_worker()
    try:
        for id, damages in ids.items():
            ward.rows("SELECT zart_offer_event(%s, 'go', '5')", (id,))
            for damage in damages:
                with contextlib.suppress(*_REFUSED):
                    ward.rows(damage.statement, {"id": id})
    finally:
        ward.start_worker()
    return ids


def check(ward: Stage, patients: Mapping[str, Sequence[Damage]]) -> None:
    """All that must hold of them, and of those that nobody has touched."""
    ward.check(within=20)
    undecided = {
        id: damages
        for id, damages in patients.items()
        if not any(damage.name.startswith(STAYS) for damage in damages)
    }

    def left() -> list[tuple[str, str, Sequence[Damage]]]:
        standing = ward.rows(
            "SELECT id, status FROM zart_v_executions WHERE id = ANY (%s) AND NOT status = ANY (%s)",
            (list(undecided), list(ENDS)),
        )
        return [(id, status, undecided[id]) for id, status in standing]

    try:
        ward.run(lambda: until(lambda: not left(), "an end of each", within=20))
    except AssertionError:
        assert left() == []
        raise
    ward.check(within=20)
    busy = "execution_id = ANY (%s) AND abs(epoch::bigint) BETWEEN 10 AND 2147480000"
    again = ward.rows(f"SELECT execution_id FROM zart_tasks WHERE {busy}", (list(patients),))
    assert [patients[id] for (id,) in again] == []
    assert ward.quiet() == []

    async def look() -> None:
        listed = {execution.id async for execution in ward.client.executions(id_prefix="victim-")}
        assert set(patients) <= listed
        for id in patients:
            execution = (await ward.client.history(id)).execution
            if execution.status in ("failed", "blocked") and not any(
                each.name.startswith(_BY_HAND) for each in patients[id]
            ):
                assert execution.failure is not None, patients[id]
                assert execution.failure.type, patients[id]

    ward.run(look)


def test_each_damage_is_borne(ward: Stage) -> None:
    """Each ends its execution in a state that says why, or does not matter; none is met again and again."""
    chosen = DAMAGES if FACTOR else random.Random(1).sample(DAMAGES, 150)
    patients = harm(ward, [[damage] for damage in chosen])
    check(ward, patients)
    command = CliRunner()
    for id in ["", *list(patients)[:: max(len(patients) // 10, 1)]]:
        words = ["show", id] if id else ["list", "--limit", "1000"]
        shown = command.invoke(cli, words, env={"ZART_DATABASE_URL": ward.dsn})
        assert shown.exit_code == 0, (patients.get(id), shown.exception, shown.output)


@examples(2)
@given(st.lists(st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=3), min_size=20, max_size=20))
def test_several_damages_to_one_execution_are_borne(ward: Stage, patients: list[list[Damage]]) -> None:
    """In any combination."""
    check(ward, harm(ward, patients))
