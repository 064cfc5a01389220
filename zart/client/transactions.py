"""Starts and events as part of a transaction of the caller's own: rolled back with it, or committed with it.

They only insert, so a transaction that stays open for long delays no execution. Workers see what was inserted
once it has committed.
"""

from typing import Any, TypeVar, overload

import psycopg

from zart.client.database import query_within
from zart.client.offering import Answer, Offer, make_offer, read_answer
from zart.client.outside import refuse_in_body
from zart.client.starting import (
    NOT_GIVEN,
    OnConflict,
    Start,
    conflict,
    is_equal,
    make_start,
    read_target,
    vanished,
)
from zart.context import place
from zart.durable import Durable
from zart.encryption import configured
from zart.errors import UsageError
from zart.in_step import InStep
from zart.primitives import Event

D = TypeVar("D")
R = TypeVar("R")
T = TypeVar("T")

Connection = psycopg.AsyncConnection[Any]


@overload
async def start(
    fn: Durable[[], R],
    /,
    *,
    id: str | None = None,
    connection: Connection | None = None,
    schema: str = "public",
) -> str: ...
@overload
async def start(
    fn: Durable[[D], R],
    data: D,
    /,
    *,
    id: str | None = None,
    connection: Connection | None = None,
    schema: str = "public",
) -> str: ...
async def start(
    fn: Durable[..., Any],
    data: Any = NOT_GIVEN,
    /,
    *,
    id: str | None = None,
    connection: Connection | None = None,
    schema: str = "public",
) -> str:
    """Start an execution in the transaction of `connection`, and return its id.

    In a step with `transaction=True` the step's own transaction is meant unless another one is given. The execution
    exists once the transaction has committed, and never if it is rolled back. Idempotent by `id` like `Client.start`.
    Raises UsageError without a connection or in the body of a durable function,
    ExecutionConflict when the id stands for something else, SerializationError for input that does not fit.
    """
    refuse_in_body("zart.start")
    given, schema = _require(connection, schema, "zart.start", "client.start(...)")
    wanted = make_start(
        read_target(fn), data, id=getattr(fn, "id", None) if id is None else id, payloads=configured()
    )
    await start_within(given, schema, wanted, "raise")
    return wanted.id


@overload
async def offer_event(
    execution_id: str,
    event: Event[T],
    payload: T,
    /,
    *,
    dedup: str | None = None,
    connection: Connection | None = None,
    schema: str = "public",
) -> bool: ...
@overload
async def offer_event(
    execution_id: str,
    event: str,
    payload: Any = None,
    /,
    *,
    dedup: str | None = None,
    connection: Connection | None = None,
    schema: str = "public",
) -> bool: ...
async def offer_event(
    execution_id: str,
    event: Event[Any] | str,
    payload: Any = None,
    /,
    *,
    dedup: str | None = None,
    connection: Connection | None = None,
    schema: str = "public",
) -> bool:
    """Offer an event in the transaction of `connection`; it arrives once that has committed.

    In a step with `transaction=True` the step's own transaction is meant unless another one is given.

    Returns whether it was added: an event of the same `dedup` key was there before otherwise. Raises
    UsageError without a connection or in the body of a durable function, ExecutionNotFound and
    ExecutionFinished.
    """
    refuse_in_body("zart.offer_event")
    given, schema = _require(connection, schema, "zart.offer_event", "client.offer_event(...)")
    return await offer_within(given, schema, make_offer(execution_id, event, payload, dedup, configured()))


async def start_within(connection: Connection, schema: str, wanted: Start, on_conflict: OnConflict) -> bool:
    """Whether the execution is new. Raises ExecutionConflict."""
    if await query_within(connection, schema, "start", wanted.parameters()):
        wanted.tell()
        return True
    rows = await query_within(connection, schema, "compare", wanted.compare_parameters())
    if not rows:
        raise vanished(wanted)
    if on_conflict == "raise" and not is_equal(wanted, rows[0]):
        raise conflict(wanted, rows[0])
    return False


async def offer_within(connection: Connection, schema: str, offer: Offer) -> bool:
    """Whether the event was added. Raises ExecutionNotFound and ExecutionFinished."""
    rows = await query_within(connection, schema, "offer_event_in_transaction", offer.parameters())
    return read_answer(offer, rows[0]) is Answer.ADDED


def _require(connection: Connection | None, schema: str, called: str, instead: str) -> tuple[Connection, str]:
    """The connection, and the schema of Zart's tables there. A step's own transaction is one, too."""
    if connection is None:
        here = place.get()
        if isinstance(here, InStep) and here.inside.transaction is True:
            return here.connection(), here.inside.schema
        raise UsageError(
            f"{called} is part of a transaction of yours: give it connection=. Without one use a Client: "
            f"{instead}"
        )
    return connection, schema
