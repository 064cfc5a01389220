"""The input of a scheduled step: what it was called with, as the worker that runs it reads it.

Each argument travels as its parameter's annotation says, and comes back as that. Options that a call has changed travel
along; exception classes cannot, so those that a policy names must be the step's own.
"""

import datetime as dt
from typing import Any, NamedTuple

import msgspec

from zart.calls import StepCall, StepSpec, TimeoutScope
from zart.codec import MAX_BYTES
from zart.errors import PayloadError, SerializationError, UsageError
from zart.retry import Retry


class Then(NamedTuple):
    """The step of the same run that may begin when this one has ended."""

    path: str
    name: str
    occurrence: int


class _Stored(msgspec.Struct, omit_defaults=True):
    of: str = ""
    """The durable function that has scheduled it."""
    args: list[msgspec.Raw] = []
    kwargs: dict[str, msgspec.Raw] = {}
    retry: str | None = None
    timeout: float | msgspec.UnsetType | None = msgspec.UNSET
    scope: TimeoutScope | None = None
    then: Then | None = None
    marks: str = ""


_decode = msgspec.json.Decoder(_Stored).decode


def write_input(
    call: StepCall, registered: StepSpec, durable: str, what: str, then: Then | None = None
) -> bytes:
    """What a step that `durable` schedules is stored with; `what` is how errors call it.

    Raises SerializationError for arguments that cannot travel, and UsageError for options that cannot.
    """
    spec = call.spec
    parameters = spec.parameters
    stored = _Stored(
        of=durable,
        args=[
            msgspec.Raw(parameters.positional(number).encode(value, f"argument {number + 1} of {what}"))
            for number, value in enumerate(call.args)
        ],
        kwargs={
            name: msgspec.Raw(parameters.named(name).encode(value, f"argument {name!r} of {what}"))
            for name, value in call.kwargs.items()
        },
        then=then,
        marks=call.marks,
    )
    if spec.retry != registered.retry:
        own = registered.retry
        if (spec.retry.retry_on, spec.retry.give_up_on) != (own.retry_on, own.give_up_on):
            raise UsageError(
                f"{what}: retry_on and give_up_on are classes, which cannot travel to the worker that runs it: give "
                "them to @step, or call the step inline"
            )
        stored.retry = str(spec.retry)
    if (spec.timeout, spec.timeout_scope) != (registered.timeout, registered.timeout_scope):
        stored.timeout = None if spec.timeout is None else spec.timeout.total_seconds()
        stored.scope = spec.timeout_scope
    data = msgspec.json.encode(stored)
    if len(data) > MAX_BYTES:
        raise SerializationError(
            f"the arguments of {what} take {len(data):,} bytes, and {MAX_BYTES:,} is the most. Keep the data "
            "elsewhere, and give the step where it is",
            what=what,
        )
    return data


def read_input(data: str | None, spec: StepSpec, function: str, name: str, what: str) -> tuple[StepCall, str]:
    """The call that was stored, of the step `function` under its rendered `name`, and whose it is.

    Raises PayloadError when it does not fit the function any more.
    """
    try:
        stored = _decode(data or "{}")
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise PayloadError(f"the stored call of {what} cannot be read: {error}") from error
    parameters = spec.parameters
    try:
        args = tuple(
            parameters.positional(number).load(bytes(value), f"argument {number + 1} of {what}")
            for number, value in enumerate(stored.args)
        )
        kwargs = {
            key: parameters.named(key).load(bytes(value), f"argument {key!r} of {what}")
            for key, value in stored.kwargs.items()
        }
        spec.arguments.digest(args, kwargs)
    except UsageError as error:
        raise PayloadError(f"{what} was scheduled by other code: {error}") from error
    changes: dict[str, Any] = {}
    if stored.retry is not None:
        policy = Retry.parse(stored.retry)
        changes["retry"] = msgspec.structs.replace(
            policy, retry_on=spec.retry.retry_on, give_up_on=spec.retry.give_up_on
        )
    if stored.scope is not None and stored.timeout is not msgspec.UNSET:
        limit = stored.timeout
        changes["timeout"] = None if limit is None else dt.timedelta(seconds=limit)
        changes["timeout_scope"] = stored.scope
    varied = msgspec.structs.replace(spec, **changes) if changes else spec
    call = StepCall(varied, name, args, kwargs, template=function, marks=stored.marks)
    return call, stored.of
