"""What the tests of the client share: functions to start, and an engine's part played by SQL."""

from typing import Any

import msgspec
import psycopg

from zart import Event, durable
from zart.encryption import Place, configured
from zart.failures import exception_to_json


class Order(msgspec.Struct):
    number: int
    note: str = ""


class Approval(msgspec.Struct):
    by: str


Approved = Event("approved", Approval)


@durable("ship")
async def ship(order: Order) -> str:
    return f"shipped {order.number}"


@durable("other")
async def other(order: Order) -> str:
    return f"other {order.number}"


@durable("sweep")
async def sweep() -> None:
    return None


def rows(dsn: str, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """What a query gives."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def finish(dsn: str, id: str, result: str = '"done"', *, notify: bool = True) -> None:
    """End an execution as completed, as a worker does."""
    stored = configured().encrypt(result.encode(), Place(id, "result")).decode()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "WITH gone AS (DELETE FROM zart_tasks WHERE execution_id = %(id)s) UPDATE zart_executions "
            "SET status = 'completed', result = %(result)s::text::json, finished_at = zart_now() WHERE id "
            "= %(id)s",
            {"id": id, "result": stored},
        )
        if notify:
            connection.execute(
                "SELECT pg_notify('zart_done_' || substr(md5('public'), 1, 12), id) FROM zart_executions "
                "WHERE id = %s AND awaited",
                (id,),
            )


def fail(dsn: str, id: str, error: Exception, status: str = "failed") -> None:
    """End an execution as failed or cancelled, or block it."""
    failure = configured().encrypt(exception_to_json(error), Place(id, "failure")).decode()
    if status == "blocked":
        rows(
            dsn,
            "UPDATE zart_tasks SET state = 'blocked', started_at = zart_now() WHERE execution_id = %s",
            (id,),
        )
        rows(dsn, "UPDATE zart_executions SET failure = %s::text::json WHERE id = %s", (failure, id))
    else:
        rows(dsn, "DELETE FROM zart_tasks WHERE execution_id = %s", (id,))
        rows(
            dsn,
            "UPDATE zart_executions SET status = %s, failure = %s::text::json, finished_at = zart_now() "
            "WHERE id = %s",
            (status, failure, id),
        )
