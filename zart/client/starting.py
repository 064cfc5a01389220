"""Starting executions: what is checked before anything is sent, and what an id that exists already means.

A start is idempotent by its id. The same function with equal input is the execution that exists, in whatever
state; anything else is a conflict, and nothing is changed. Equal is what has the same digest, taken from the
decoded input, so that a field which was added with a default makes no difference; where one of the two has no
digest (it was started from SQL, or by name), their JSON is compared, as the function's type reads it if that
is known. Where one of them is encrypted the database cannot compare them, and both are compared here. Nor is a hash of
what was encrypted worth anything once an execution was pruned: so an encrypted digest has one of the JSON in it.
"""

import datetime as dt
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, cast

import msgspec

from zart.client.database import Row
from zart.codec import ANY, Codec
from zart.digest import HASH_BYTES, OF_JSON, payload_digest
from zart.durable import Durable
from zart.durations import Duration, parse_duration
from zart.encryption import PLAIN, Payloads, Place
from zart.encryption.envelope import is_envelope
from zart.encryption.payloads import is_encrypted_digest
from zart.errors import ExecutionConflict, PayloadError, UsageError
from zart.identifiers import uuid7
from zart.instants import in_utc
from zart.names import check_id, check_name
from zart.telemetry.events import ExecutionStarted
from zart.telemetry.hub import hub

NOT_GIVEN: Final[Any] = msgspec.UNSET
OnConflict = Literal["raise", "return"]

_DEFAULT_QUEUE = "default"
_ANYTHING = Codec(ANY)
_DIGEST_BYTES: Final = 1 + HASH_BYTES


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The function to start, and how its executions are stored."""

    name: str
    version: str | None
    queue: str
    priority: int
    payload: Codec | None
    """How input is written and read; None where the function itself is not at hand."""
    takes_payload: bool | None
    """None: not known."""
    result: Codec
    time_limit: dt.timedelta | None = None
    """Of executions started so, in place of the function's own; zero means none."""

    @property
    def key(self) -> tuple[object, ...]:
        """Starts with equal keys may go in one statement."""
        return self.queue, self.name, self.version, self.priority, self.time_limit


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """What an execution is started with: its JSON, and the digest by which two are compared."""

    payload: str | None
    digest: bytes | None


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """One execution to be started."""

    target: Target
    id: str
    id_is_new: bool
    """It was made here: nobody else can have it."""
    run_id: uuid.UUID
    input: Input
    stored: Input
    """The same as it is stored: encrypted, where payloads are."""
    payloads: Payloads
    at: dt.datetime | None
    delay: dt.timedelta | None
    trace_context: str | None
    """Of the code that starts it."""

    def parameters(self, *, awaited: bool = False, gives_way: str | None = None) -> dict[str, Any]:
        """For the statement `start`."""
        target = self.target
        return {
            "id": self.id,
            "name": target.name,
            "version": target.version,
            "queue": target.queue,
            "priority": target.priority,
            "run_id": self.run_id,
            "payload": self.stored.payload,
            "digest": self.stored.digest,
            "awaited": awaited,
            "gives_way": gives_way,
            "at": self.at,
            "delay": self.delay,
            "time_limit": target.time_limit,
            "trace_context": self.trace_context,
        }

    def tell(self) -> None:
        """Tell telemetry, if anybody listens, that it was started."""
        if hub.listening:
            target = self.target
            hub.tell(
                ExecutionStarted(
                    execution_id=self.id, function=target.name, version=target.version, queue=target.queue
                )
            )

    def compare_parameters(self) -> dict[str, Any]:
        """For the statement `compare`."""
        return {"ids": [self.id], "payloads": [self.stored.payload], "digests": [self.stored.digest]}


def read_target(
    fn: Durable[..., Any] | str,
    *,
    version: str | None = None,
    queue: str | None = None,
    priority: int | None = None,
) -> Target:
    """The function that a caller means. Raises UsageError for what is none."""
    if queue is not None:
        check_name(queue, "the queue")
    if priority is not None:
        _check_priority(priority)
    if isinstance(fn, str):
        return Target(
            name=check_name(fn, "the name of the durable function"),
            version=None if version is None else check_name(version, "the version"),
            queue=queue or _DEFAULT_QUEUE,
            priority=priority or 0,
            payload=None,
            takes_payload=None,
            result=_ANYTHING,
        )
    _check_durable(fn)
    if version is not None:
        raise UsageError(f"version= goes with a name; the durable function {fn.name!r} has its own")
    spec = fn.spec
    return Target(
        name=spec.name,
        version=spec.version,
        queue=spec.queue if queue is None else queue,
        priority=spec.priority if priority is None else priority,
        payload=spec.payload,
        takes_payload=spec.takes_payload,
        result=spec.result,
        time_limit=fn.time_limit,
    )


def read_input(target: Target, data: Any) -> Input:
    """Check and encode what an execution is started with.

    Raises UsageError when the function takes no input, or some and there is none; SerializationError, with
    the field, when it does not fit or cannot be stored.
    """
    if target.takes_payload is False and data is not NOT_GIVEN:
        raise UsageError(f"the durable function {target.name!r} takes no input, but was given {_shown(data)}")
    if target.takes_payload and data is NOT_GIVEN:
        raise UsageError(
            f"the durable function {target.name!r} takes its input as one argument: start(fn, data)"
        )
    what = f"the input of {target.name!r}"
    if target.payload is None:
        # It is decoded by a function that is not at hand: only that knows what the digest is of.
        return Input(
            payload=None if data is NOT_GIVEN else _ANYTHING.encode(data, what).decode(), digest=None
        )
    if data is NOT_GIVEN:
        return Input(payload=None, digest=payload_digest(None))
    encoded, decoded = target.payload.store(data, what)
    return Input(payload=encoded.decode(), digest=payload_digest(decoded))


def make_start(
    target: Target,
    data: Any,
    *,
    id: str | None,
    delay: Duration | None = None,
    at: dt.datetime | None = None,
    payloads: Payloads = PLAIN,
) -> Start:
    """Check all that can be checked without the database; a missing id is made."""
    if delay is not None and at is not None:
        raise UsageError("delay= and at= both say when to start: give one of them")
    if at is not None:
        at = _check_at(at)
    run_id = uuid7()
    own_id = str(uuid7()) if id is None else check_id(id)
    given = read_input(target, data)
    return Start(
        target=target,
        id=own_id,
        id_is_new=id is None,
        run_id=run_id,
        input=given,
        stored=given if payloads.codec is None else _encrypted(given, own_id, payloads),
        payloads=payloads,
        at=at,
        delay=None if delay is None else parse_duration(delay, what="delay"),
        trace_context=hub.trace_context(),
    )


def _encrypted(given: Input, id: str, payloads: Payloads) -> Input:
    payload = given.payload
    return Input(
        payload=None if payload is None else payloads.encrypt(payload.encode(), Place(id, "input")).decode(),
        digest=payloads.encrypt_digest(_compared(given), Place(id, "digest")),
    )


def is_equal(start: Start, found: Row) -> bool:
    """Whether the execution that a row of `compare` shows is the one that `start` means.

    Raises PayloadUnreadable when that cannot be told, since its input is encrypted with a key that is not here.
    """
    _, name, _, digests_equal, json_equal, payload, digest, pruned = found
    if name != start.target.name:
        return False
    if start.payloads.codec is not None or is_envelope(payload) or is_encrypted_digest(digest):
        if payload is not None:
            payload = start.payloads.decrypt(payload, Place(start.id, "input"))
        if digest is not None:
            digest = start.payloads.decrypt_digest(digest, Place(start.id, "digest"))
        own = _compared(start.input)
        digests_equal = None
        if digest is not None and digest[0] == own[0]:
            digests_equal = digest[:_DIGEST_BYTES] == own[:_DIGEST_BYTES]
        if not pruned:
            json_equal = _hash_of_json(payload) == own[-HASH_BYTES:]
        elif digest is not None:
            # One of a child has no more than the first hash: that of its JSON, too, where no field has its default.
            json_equal = digest[-HASH_BYTES:] == own[-HASH_BYTES:]
    if digests_equal is not None:
        return cast("bool", digests_equal)
    if json_equal:
        return True
    codec = start.target.payload
    if codec is None or payload is None or start.input.digest is None:
        return False
    try:
        return payload_digest(codec.load(payload, "the stored input")) == start.input.digest
    except PayloadError:
        return False


def _compared(given: Input) -> bytes:
    """Its digest where the function is at hand, and a hash of its JSON."""
    return (given.digest or bytes((OF_JSON,))) + _hash_of_json(given.payload)


def _hash_of_json(payload: str | None) -> bytes:
    """Equal for JSON that the database would call equal."""
    try:
        decoded = None if payload is None else msgspec.json.decode(payload)
    except (msgspec.MsgspecError, RecursionError):
        # SQL may store what Python cannot read: it equals itself alone.
        return hashlib.blake2b((payload or "").encode(), digest_size=HASH_BYTES).digest()
    return payload_digest(decoded)[1:]


def conflict(start: Start, found: Row) -> ExecutionConflict:
    """The error for an id that stands for something else."""
    name = found[1]
    if name != start.target.name:
        what = f"of the function {name!r}, not {start.target.name!r}"
    else:
        what = f"of {name!r} with another input"
    return ExecutionConflict(
        f"execution {start.id!r} exists already, {what}; nothing was started. An id stands for one "
        "function and one "
        'input: choose another id, or take the one that exists with on_conflict="return"',
        execution_id=start.id,
    )


def vanished(start: Start) -> ExecutionConflict:
    """The error for an id that was taken when it was to be started, and not when that was looked at."""
    return ExecutionConflict(
        f"execution {start.id!r} existed a moment ago and is gone now: somebody deleted it. Start it again",
        execution_id=start.id,
    )


def sort_items(items: Mapping[str, Any]) -> list[str]:
    """The ids of many starts, checked, in the order in which everybody inserts them."""
    return sorted(map(check_id, items))


def chunks(starts: Sequence[Start], *, most: int, most_bytes: int) -> list[list[Start]]:
    """`starts` in their order, in groups of at most `most` and about `most_bytes` of payload."""
    groups: list[list[Start]] = []
    size = 0
    for start in starts:
        weight = len(start.input.payload or "")
        if not groups or len(groups[-1]) >= most or size + weight > most_bytes:
            groups.append([])
            size = 0
        groups[-1].append(start)
        size += weight
    return groups


def _check_priority(priority: object) -> None:
    if isinstance(priority, bool) or not isinstance(priority, int) or not -(2**31) <= priority < 2**31:
        raise UsageError(f"priority is {priority!r}, but it must be a whole number of 32 bits, such as 10")


def _check_durable(fn: object) -> None:
    if not isinstance(fn, Durable):
        shown = getattr(fn, "__qualname__", None) or repr(fn)
        raise UsageError(
            f"{shown} is no durable function: decorate it with @durable(...), or give its name as text"
        )


def _check_at(at: object) -> dt.datetime:
    """Return the time in UTC: PostgreSQL knows no zones beyond 16 hours, and Python does."""
    if not isinstance(at, dt.datetime):
        raise UsageError(f"at= is {at!r}, but it must be an aware datetime; for a duration use delay=")
    return in_utc(at, "at=")


def _shown(value: object) -> str:
    return f"a value of type {type(value).__name__}"
