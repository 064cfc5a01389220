"""Workflows of the corpus about what happens inside a step: transactions, at most once, progress.

What a step in a transaction has done is seen by the next one: each offers its execution an event that nobody waits for,
and counts them, so one that was lost, or is there twice, is in the result. (Rows that they change would have them wait
for each other: a process that was stopped in a transaction holds those until that has stood idle for too long.)
"""

from typing import Any

import psycopg
from psycopg.types.json import Jsonb

import zart
import zart.sync
from tests.crashes.effects import note
from tests.crashes.straight import do
from tests.crashes.workflow import Workflow, returns
from zart import durable, step

_ADD = "SELECT zart_offer_event(%s, 'ledger')"
_COUNT = "SELECT count(*) FROM zart_events WHERE execution_id = %s AND name = 'ledger'"


@step("where", transaction=True)
async def where() -> str:
    """The address of the database."""
    return zart.connection().info.dsn


@step("ledger-add", transaction=True)
async def add(told: str) -> int:
    note(told)
    connection = zart.connection()
    await zart.offer_event(zart.execution_id(), "ledger")
    return _one(await (await connection.execute(_COUNT, (zart.execution_id(),))).fetchall())


@step("ledger-add-in-a-thread", transaction=True)
def add_in_a_thread(told: str) -> int:
    note(told)
    connection = zart.sync.connection()
    connection.execute(_ADD, (zart.execution_id(),))
    zart.set_data(told)
    return _one(connection.execute(_COUNT, (zart.execution_id(),)).fetchall())


@step("ledger-add-itself", transaction="own", retry="exponential(20, 50ms, max=2s)")
def add_itself(dsn: str, told: str) -> int:
    note(told)
    with psycopg.connect(dsn) as connection:
        connection.execute(_ADD, (zart.execution_id(),))
        count = _one(connection.execute(_COUNT, (zart.execution_id(),)).fetchall())
        connection.execute("SELECT zart_record_step(%s, %s)", (zart.step_context().token, Jsonb(count)))
    return count


def _one(rows: list[Any]) -> int:
    ((count,),) = rows
    return int(count)


@durable("transactional")
async def transactional() -> list[Any]:
    """Each event is there exactly once, together with its step's record."""
    counts = [await add("first"), await add_in_a_thread("second")]
    between = await do("between", zart.data(str, default="nothing "))
    return [*counts, between, await add("third")]


@durable("own-transaction")
async def own_transaction() -> list[int]:
    """The same by the steps themselves."""
    dsn = await where()
    return [await add_itself(dsn, "first"), await add_itself(dsn, "second"), await add("third")]


@step("charge-once", at_most_once=True)
async def charge() -> str:
    note("charge")
    return "charged"


@step("charge-once-in-a-thread", at_most_once=True)
def charge_in_a_thread() -> str:
    note("charge again")
    return "charged"


@durable("at-most-once")
async def at_most_once() -> list[str]:
    """Charged, or interrupted; never charged twice."""
    told: list[str] = []
    for one in (charge, charge_in_a_thread):
        try:
            told.append(await one())
        except zart.StepInterrupted:
            told.append("interrupted")
    return [*told, await do("after")]


def _once_each(result: list[str]) -> bool:
    """with each charge, or the word that it was interrupted"""
    return set(result[:2]) <= {"charged", "interrupted"} and result[2:] == ["after"]


@step("copy-rows", retry="fixed(2, 5ms)")
async def copy(rows: int) -> int:
    for row in range(zart.last_progress(int) or 0, rows):
        zart.progress(row + 1)
        if row == 2 and zart.step_context().step_attempt == 1:
            note("copy")
            raise ConnectionError("try again")
    return zart.last_progress(int) or 0


@durable("progress")
async def progress() -> list[int | str]:
    """A step that goes on where its last attempt has ended, if that is known."""
    return [await copy(4), await do("after")]


WORKFLOWS = (
    Workflow(
        durable=transactional,
        expect=returns([1, 2, "secondbetween", 3]),
        chains=(("first", "second", "between", "third"),),
    ),
    Workflow(
        durable=own_transaction,
        expect=returns([1, 2, 3]),
        chains=(("first", "second", "third"),),
    ),
    Workflow(
        durable=at_most_once,
        expect=returns(_once_each),
        chains=(("charge", "charge again", "after"),),
        maybe=frozenset(("charge", "charge again")),
        at_most_once=frozenset(("charge", "charge again")),
        varies=True,
    ),
    Workflow(durable=progress, expect=returns([4, "after"]), chains=(("copy", "after"),)),
)
