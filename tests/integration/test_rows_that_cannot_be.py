"""What the tables themselves refuse, whoever writes: a hand at psql, or a mistake in the engine."""

import psycopg
import pytest
from psycopg import errors

from tests.support.clients import Order, finish, ship
from zart import Client


@pytest.mark.parametrize(
    ("edit", "constraint"),
    [
        ("zart_tasks SET state = 'running'", "zart_tasks_held"),
        ("zart_tasks SET owner = 7", "zart_tasks_held"),
        ("zart_executions SET status = 'completed'", "zart_executions_ended"),
        ("zart_executions SET finished_at = now()", "zart_executions_ended"),
    ],
)
async def test_a_row_says_what_it_is(dsn: str, edit: str, constraint: str) -> None:
    """Work runs exactly while somebody holds it; an execution has ended exactly when it says since when."""
    async with Client(dsn) as client:
        await client.start(ship, Order(1), id="a")
    with psycopg.connect(dsn, autocommit=True) as hand, pytest.raises(errors.CheckViolation) as refused:
        hand.execute(f"UPDATE {edit}".encode())
    assert refused.value.diag.constraint_name == constraint


@pytest.mark.parametrize("status", ["scheduled", "failed", "cancelled"])
async def test_what_ended_stays_as_it_ended(dsn: str, status: str) -> None:
    """No edit makes another end of it, or wakes it; the error says which execution and how it has ended."""
    async with Client(dsn) as client:
        await client.start(ship, Order(1), id="a")
        finish(dsn, "a")
        ended = "NULL" if status == "scheduled" else "now()"
        with psycopg.connect(dsn, autocommit=True) as hand, pytest.raises(errors.CheckViolation) as refused:
            hand.execute(f"UPDATE zart_executions SET status = '{status}', finished_at = {ended}".encode())
        assert refused.value.diag.message_primary == (
            f"execution 'a' has ended (completed) and cannot become {status}"
        )
        assert (await client.status("a")).status == "completed"
