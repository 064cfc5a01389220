"""Offering events to executions."""

import uuid
from enum import Enum
from typing import Any, NamedTuple

from zart.client.database import Row
from zart.codec import ANY, Codec
from zart.encryption import PLAIN, Payloads, Place
from zart.errors import ExecutionFinished, ExecutionNotFound, UsageError
from zart.names import check_name, check_text
from zart.primitives import Event

_ANYTHING = Codec(ANY)


class Offer(NamedTuple):
    """An event on its way."""

    execution_id: str
    event: str
    payload: str
    """As it is stored: encrypted, where payloads are."""
    dedup: str

    def parameters(self) -> dict[str, Any]:
        return {"id": self.execution_id, "event": self.event, "payload": self.payload, "dedup": self.dedup}


def make_offer(
    execution_id: str,
    event: Event[Any] | str,
    payload: Any,
    dedup: str | None,
    payloads: Payloads = PLAIN,
) -> Offer:
    """Check and encode an event.

    Without a dedup key of the caller's it has one of its own, so that sending it again after a lost
    connection does not offer it twice. Raises UsageError, and SerializationError when the payload does not
    fit the event's type.
    """
    check_known_id(execution_id)
    if isinstance(event, Event):
        encoded, _ = event.codec.store(payload, f"the payload of event {event.name!r}")
        name = event.name
    else:
        name = check_name(event, "the name of an event")
        encoded = _ANYTHING.encode(payload, f"the payload of event {name!r}")
    key = f"~{uuid.uuid4().hex}" if dedup is None else check_name(dedup, "the dedup key")
    stored = payloads.encrypt(encoded, Place(execution_id, "event", name=name))
    return Offer(execution_id, name, stored.decode(), key)


class Answer(Enum):
    """What became of an event."""

    ADDED = "added"
    KNOWN = "known"
    """One of this dedup key was there before."""
    CHANGED = "changed"
    """Something happened at the same moment, and nothing was added: ask again."""


def read_answer(offer: Offer, row: Row) -> Answer:
    """What the database answered. Raises ExecutionNotFound and ExecutionFinished."""
    status, added, known, _ = row
    if added:
        return Answer.ADDED
    if known:
        return Answer.KNOWN
    if status is None:
        raise not_found(offer.execution_id)
    if status != "scheduled":
        raise ExecutionFinished(
            f"execution {offer.execution_id!r} has ended ({status}): it takes no more events, and "
            f"{offer.event!r} was not stored",
            execution_id=offer.execution_id,
        )
    return Answer.CHANGED


def check_known_id(id: object) -> str:
    """Return what may be the id of an execution that exists.

    Raises UsageError for what is no text, and ExecutionNotFound for text that no id can be.
    """
    if not isinstance(id, str):
        raise UsageError(f"the execution id is {id!r}, but it must be text")
    try:
        return check_text(id, "the execution id")
    except UsageError:
        raise not_found(id) from None


def not_found(execution_id: str) -> ExecutionNotFound:
    shown = repr(execution_id)
    if len(shown) > 500:
        shown = shown[:497] + "..."
    return ExecutionNotFound(
        f"there is no execution {shown}; check the id, and that the transaction which starts it has committed",
        execution_id=execution_id,
    )
