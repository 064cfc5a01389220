"""A place for tests that need no engine: it notes what it is asked and answers with what it was given."""

import datetime as dt
import random
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

from zart.calls import ChildCall, StepCall
from zart.codec import Codec
from zart.context import Undos, place
from zart.errors import ContinuedAsNew
from zart.handles import Pending
from zart.state import Context, StepContext

LONG_AGO = dt.datetime(2001, 2, 3, tzinfo=dt.UTC)
ID = uuid.UUID(int=7)


class NotingPending:
    """What a handle of a `NotingPlace` stands for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.execution_id = f"id of {name}"

    def wait(self) -> Coroutine[Any, Any, Any]:
        return _answer(f"result of {self.name}")

    def cancel(self) -> Coroutine[Any, Any, bool]:
        return _answer(True)


class NotingUndos:
    """What a saga is, as far as a saga can tell."""

    def __init__(self, asked: list[tuple[Any, ...]]) -> None:
        self._asked = asked

    def add(self, call: StepCall, /) -> None:
        self._asked.append(("add", call.name, call.args, dict(call.kwargs)))

    def enter(self) -> None:
        self._asked.append(("enter",))

    def leave(self, error: BaseException | None, /) -> Coroutine[Any, Any, None]:
        self._asked.append(("leave", error))
        return _answer(None)

    def compensate(self) -> Coroutine[Any, Any, None]:
        self._asked.append(("compensate",))
        return _answer(None)


class NotingPlace:
    """A durable body's place, as far as decorators and primitives can tell."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.calls: list[StepCall] = []
        self.is_suspending = False

    def call_step(self, call: StepCall, /) -> Coroutine[Any, Any, Any]:
        self.calls.append(call)
        return _answer(f"result of {call.name}")

    def call_durable(self, call: ChildCall, /) -> Coroutine[Any, Any, Any]:
        self.asked.append(("call_durable", call.spec.name, call.spec.fn, call.args))
        return _answer(f"result of {call.spec.name}")

    def schedule_step(self, call: StepCall, /) -> Pending:
        self.asked.append(("schedule_step", call.name, call.args))
        return NotingPending(call.name)

    def map(
        self, calls: Sequence[StepCall], limit: int | None, /, *, return_exceptions: bool
    ) -> Coroutine[Any, Any, list[Any]]:
        self.asked.append(("map", [call.name for call in calls], limit, return_exceptions))
        return _answer([f"result of {call.name}" for call in calls])

    def start_child(self, call: ChildCall, /) -> Pending:
        self.asked.append(("start_child", call.spec.name, call.args, call.id, call.detached))
        return NotingPending(call.spec.name)

    def event(self, name: str, codec: Codec, /) -> Pending:
        self.asked.append(("event", name, codec.annotation))
        return NotingPending(name)

    def timer(self, duration: dt.timedelta, /) -> Pending:
        self.asked.append(("timer", duration))
        return NotingPending("timer")

    def wait_all(
        self, pendings: Sequence[Any], /, *, return_exceptions: bool
    ) -> Coroutine[Any, Any, list[Any]]:
        self.asked.append(("wait_all", [pending.name for pending in pendings], return_exceptions))
        return _answer([f"result of {pending.name}" for pending in pendings])

    def wait_any(self, pendings: Sequence[Any], /) -> Coroutine[Any, Any, int]:
        self.asked.append(("wait_any", [pending.name for pending in pendings]))
        return _answer(len(pendings) - 1)

    def sleep(self, duration: dt.timedelta, /) -> Coroutine[Any, Any, None]:
        self.asked.append(("sleep", duration))
        return _answer(None)

    def sleep_until(self, when: dt.datetime, /) -> Coroutine[Any, Any, None]:
        self.asked.append(("sleep_until", when))
        return _answer(None)

    def wait_for_event(
        self, name: str, codec: Codec, timeout: dt.timedelta | None, /
    ) -> Coroutine[Any, Any, Any]:
        self.asked.append(("wait_for_event", name, codec.annotation, timeout))
        return _answer(f"payload of {name}")

    def timeout(self, duration: dt.timedelta, /) -> AbstractAsyncContextManager[None]:
        self.asked.append(("timeout", duration))
        return nullcontext()

    def saga(self) -> Undos:
        self.asked.append(("saga",))
        return NotingUndos(self.asked)

    def capture(self, name: str, fn: Callable[[], Any], codec: Codec, /) -> Coroutine[Any, Any, Any]:
        self.asked.append(("capture", name, codec.annotation))
        return _answer(fn())

    def data(self, codec: Codec, default: Any, /) -> Any:
        self.asked.append(("data", codec.annotation))
        return default

    def set_data(self, value: object, /) -> None:
        self.asked.append(("set_data", value))

    def patched(self, change_id: str, /) -> bool:
        self.asked.append(("patched", change_id))
        return True

    def continue_as_new(self, data: object, /) -> NoReturn:
        raise ContinuedAsNew(repr(data).encode())

    def now(self) -> dt.datetime:
        return LONG_AGO

    def uuid4(self) -> uuid.UUID:
        return ID

    def random(self) -> random.Random:
        return random.Random(7)

    def suspending(self) -> bool:
        return self.is_suspending

    def execution_id(self) -> str:
        return "order-7"

    def context(self) -> Context:
        return Context(
            execution_id="order-7",
            run_id=str(ID),
            name="sell",
            attempt=1,
            started_at=LONG_AGO,
            is_replaying=False,
        )

    def step_context(self) -> StepContext:
        return StepContext(
            execution_id="order-7", step_name="charge", step_attempt=2, idempotency_key="key", token="token"
        )

    def resource(self, type: type[Any], /) -> Any:
        return type()


async def _answer(value: Any) -> Any:
    return value


@contextmanager
def placed(here: Any) -> Iterator[None]:
    """Let the code in the block stand at a place."""
    token = place.set(here)
    try:
        yield
    finally:
        place.reset(token)
