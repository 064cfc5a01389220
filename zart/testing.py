"""Unit tests of a durable body without a database: in memory, in virtual time, with steps replaced by name.

    outcome = await zart.testing.run(onboarding, data, steps={"send-email": None}, events={"approved": [True]})
    assert outcome.result == "customer-7"
    assert outcome.slept >= 3600

It runs the body's logic on the real activation, log and waits; it is not a stand-in for the engine as a whole: there
is no crash and no concurrency between workers. A step's replacement is a value, an exception to raise, a list of
those for successive calls, or a callable with the step's parameters. A step is named by its rendered name, or by its
template.
"""

import asyncio
import inspect
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast, overload

import msgspec

from zart._engine.entries import Completed, Key, StoredEvent
from zart._engine.in_memory import World
from zart._engine.lineage import body_tasks
from zart._engine.timers import body_timers
from zart.calls import StepCall
from zart.codec import ANY, Codec
from zart.context import place
from zart.durable import Durable
from zart.errors import UsageError
from zart.failures import exception_from_json

D = TypeVar("D")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_NO_DATA: Any = msgspec.UNSET


class Outcome(Generic[R_co]):
    """What a run of a body came to.

    `steps` are the keys of its steps in the order of the calls, `calls` the arguments by step name, `slept` the
    virtual seconds that went by. `result` raises what the body raised; `error` is that, or None.
    """

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.calls: Mapping[str, Sequence[tuple[Any, ...]]] = defaultdict(list)
        self.slept: float = 0.0
        self._result: Any = None
        self._error: BaseException | None = None

    def _end(self, result: Any, error: BaseException | None) -> None:
        self._result, self._error = result, error

    @property
    def result(self) -> R_co:
        if self._error is not None:
            raise self._error
        return cast("R_co", self._result)

    @property
    def error(self) -> BaseException | None:
        return self._error


@overload
async def run(
    fn: Durable[[], R],
    /,
    *,
    steps: Mapping[str, object] = ...,
    events: Mapping[str, Sequence[object]] = ...,
    id: str = "test",
) -> Outcome[R]: ...
@overload
async def run(
    fn: Durable[[D], R],
    data: D,
    /,
    *,
    steps: Mapping[str, object] = ...,
    events: Mapping[str, Sequence[object]] = ...,
    id: str = "test",
) -> Outcome[R]: ...
async def run(
    fn: Durable[..., Any],
    data: Any = _NO_DATA,
    /,
    *,
    steps: Mapping[str, object] | None = None,
    events: Mapping[str, Sequence[object]] | None = None,
    id: str = "test",
) -> Outcome[Any]:
    """Run the body of a durable function to its end: its retries, its `on_failure`, and what it continues as new.

    Sleeps and time limits pass at once, in virtual time. `events` are payloads by event name, there from the start.
    Raises UsageError when the body waits for an event that is not there, without a time limit; what the body raises
    is in the outcome.
    """
    if place.get() is not None:
        raise UsageError(
            "zart.testing.run is called in an execution: it runs a body from the outside, in a test"
        )
    spec = fn.spec
    if spec.takes_payload == (data is _NO_DATA):
        takes = "takes its payload: run(fn, data)" if spec.takes_payload else "takes no payload: run(fn)"
        raise UsageError(f"durable function {spec.name!r} {takes}")
    loop = asyncio.get_running_loop()
    payload = (
        None if data is _NO_DATA else spec.payload.encode(data, f"the payload of {spec.name!r}").decode()
    )
    outcome: Outcome[Any] = Outcome()
    world = World(_Replacements(steps or {}, outcome).function)
    with body_tasks(loop), body_timers(loop):
        run_id = uuid.uuid5(uuid.NAMESPACE_URL, id)
        try:
            ending = await world.run_body(world.claim(id, run_id, payload, _stored(events or {})), spec)
        finally:
            outcome.slept = world.slept
            await world.close()
    match ending:
        case Completed():
            outcome._end(spec.result.load(ending.result, "the result"), None)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        case _:
            outcome._end(None, exception_from_json(ending.failure, spec.known))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return outcome


def _stored(events: Mapping[str, Sequence[object]]) -> list[StoredEvent]:
    stored: list[StoredEvent] = []
    for name, payloads in events.items():
        for payload in payloads:
            encoded = Codec(ANY if payload is None else type(payload)).encode(payload, f"event {name!r}")
            stored.append(StoredEvent(len(stored) + 1, name, encoded.decode()))
    return stored


class _Replacements:
    """What runs instead of steps."""

    def __init__(self, steps: Mapping[str, object], outcome: Outcome[Any]) -> None:
        self._steps = {
            name: iter(cast("list[object]", value)) if isinstance(value, list) else value
            for name, value in steps.items()
        }
        self._lists = {name for name, value in steps.items() if isinstance(value, list)}
        self._outcome = outcome
        self._seen: set[Key] = set()

    def function(self, call: StepCall, key: Key) -> Callable[..., Any]:
        """What to run for an attempt of a step."""
        if key.kind == "step" and key not in self._seen:
            self._seen.add(key)
            self._outcome.steps.append(str(key))
            cast("dict[str, list[Any]]", self._outcome.calls)[call.name].append(call.args)
        name = call.name if call.name in self._steps else call.template
        if name not in self._steps:
            return call.spec.fn
        replacement = self._steps[name]
        if name in self._lists:
            try:
                replacement = next(cast("Any", replacement))
            except StopIteration:
                raise UsageError(f"step {key} is called more often than it has replacements") from None
        if call.spec.threaded:
            return lambda *args, **kwargs: _replaced(replacement, args, kwargs)

        async def replaced(*args: Any, **kwargs: Any) -> Any:
            value = _replaced(replacement, args, kwargs)
            return await value if inspect.isawaitable(value) else value

        return replaced


def _replaced(replacement: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if isinstance(replacement, BaseException):
        raise replacement
    if inspect.isclass(replacement) and issubclass(replacement, BaseException):
        raise replacement
    return replacement(*args, **kwargs) if callable(replacement) else replacement
