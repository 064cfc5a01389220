"""From the engine to whoever listens.

The engine asks `hub.listening` before it makes an event, and that is all that it pays while nobody does. Hooks are
called one after the other, at once, where the event happens: mostly on the event loop, so a hook must be quick. One
that is not is said in the log, and may be subscribed with `threaded=True`. What a hook raises is logged and counted,
and goes no further.
"""

import inspect
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self, TypeVar, cast

from zart.errors import UsageError
from zart.telemetry.events import Segment, TelemetryEvent
from zart.telemetry.threaded import Threaded

_log = logging.getLogger("zart.telemetry")

T = TypeVar("T")

Hook = Callable[[TelemetryEvent], object]
"""Called with each event; what it returns is nobody's business."""

_SLOW: Final = 0.1
"""Seconds on the event loop after which a hook is called slow."""
_SLOW_TIMES: Final = 3
"""So often before it is said: once it may be the machine that had no time."""
_SAID_EVERY: Final = 60.0
"""Seconds between two lines about the same trouble of the same hook."""


class Load(NamedTuple):
    """How full a worker is now."""

    slots: int
    """Executions that may run at a time."""
    held: int
    """Executions that it holds."""
    waiting: int
    """Those of them that only wait, and take no slot."""
    parked: int
    """Bodies of suspended executions that are kept in memory."""


class Trouble(NamedTuple):
    """What went wrong with a hook."""

    hook: str
    event: str
    kind: str
    """How: raised, slow, or dropped."""


class Tracing(Protocol):
    """What traces do beside listening."""

    def enter(self, segment: Segment, /) -> None:
        """Called in the context of a body that is about to run: what it sets there, the body's code sees."""
        ...

    def current(self) -> str | None:
        """The trace context of the running code, as `Segment.trace_context` has it."""
        ...

    def of_segment(self, segment: Segment, /) -> str | None:
        """The same for what is started in a segment."""
        ...

    def ids(self) -> tuple[str, str] | None:
        """Of the running code's trace and span."""
        ...


class Subscription:
    """What `subscribe` returns: `close()` ends it, and so does leaving a `with` block of it."""

    def __init__(self, hub: "Hub", hook: Hook, *, threaded: bool) -> None:
        self.name: str = _name(hook)
        self._hub = hub
        self._apart = Threaded(self.name, self._call, self._dropped) if threaded else None
        self._slow = not threaded
        self._hook = hook
        self._on_close: list[Callable[[], object]] = []

    def deliver(self, event: TelemetryEvent) -> None:
        """Never raises, except KeyboardInterrupt."""
        if self._apart is not None:
            self._apart.put(event)
        else:
            self._call(event)

    def close(self) -> None:
        """No event that happens from now on is delivered; those that wait in a thread still are."""
        self._hub.remove(self)
        if self._apart is not None:
            self._apart.close()
        while self._on_close:
            self._on_close.pop()()

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call this when it ends."""
        self._on_close.append(callback)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        self.close()

    def _call(self, event: TelemetryEvent) -> None:
        began = time.perf_counter()
        try:
            self._hook(event)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 (whatever it is, it is the hook's, not the engine's)
            self._hub.trouble(Trouble(self.name, type(event).__name__, "raised"), error)
            return
        seconds = time.perf_counter() - began
        if self._slow and seconds > _SLOW:
            self._hub.trouble(Trouble(self.name, type(event).__name__, "slow"), seconds)

    def _dropped(self, event: TelemetryEvent) -> None:
        self._hub.trouble(Trouble(self.name, type(event).__name__, "dropped"), None)


class Hub:
    """See the module. There is one in a process: `hub`."""

    def __init__(self) -> None:
        self.listening: bool = False
        """Whether anybody is subscribed."""
        self.tracing: Tracing | None = None
        self.loads: dict[int, Callable[[], Load]] = {}
        """How full each worker of this process is, by an identity of its own."""
        self._subscriptions: tuple[Subscription, ...] = ()
        self._lock = threading.Lock()
        self._troubles: Counter[Trouble] = Counter()
        self._said: dict[Trouble, float] = {}

    def subscribe(self, hook: Hook, *, threaded: bool = False) -> Subscription:
        if not callable(hook):
            raise UsageError(f"a hook is called with each event, and {hook!r} cannot be called")
        if inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(getattr(hook, "__call__", None)):  # noqa: B004
            raise UsageError(
                f"the hook {_name(hook)} is an `async def`, but nobody waits for a hook: make it a plain `def` that "
                "hands its work on, to a queue or a task"
            )
        subscription = Subscription(self, hook, threaded=threaded)
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
            self.listening = True
        return subscription

    def remove(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = tuple(each for each in self._subscriptions if each is not subscription)
            self.listening = bool(self._subscriptions)

    def tell(self, event: TelemetryEvent) -> None:
        """Deliver an event to everybody. Ask `listening` before you make one."""
        for subscription in self._subscriptions:
            subscription.deliver(event)

    # ------------------------------------------------------------ what traces are asked

    def enter(self, segment: Segment) -> None:
        """The body of a segment is about to run in this context."""
        if self.tracing is not None:
            self._asked(self.tracing.enter, segment)

    def trace_context(self) -> str | None:
        """The trace context of the running code, to be stored with what it starts."""
        return None if self.tracing is None else self._asked(self.tracing.current)

    def trace_context_of(self, segment: Segment) -> str | None:
        """The same for what is started in a segment."""
        return None if self.tracing is None else self._asked(self.tracing.of_segment, segment)

    def trace_ids(self) -> tuple[str, str] | None:
        """The ids of the running code's trace and span."""
        return None if self.tracing is None else self._asked(self.tracing.ids)

    def _asked(self, question: Callable[..., T], *arguments: object) -> T | None:
        try:
            return question(*arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 (as with a hook)
            self.trouble(Trouble(_name(question), "question", "raised"), error)
            return None

    # ------------------------------------------------------------ what goes wrong

    @property
    def troubles(self) -> Mapping[Trouble, int]:
        """What went wrong with hooks so far, and how often."""
        with self._lock:
            return dict(self._troubles)

    def trouble(self, trouble: Trouble, told: object) -> None:
        """Count what went wrong; say it now and then."""
        hook, event, kind = trouble
        now = time.monotonic()
        with self._lock:
            self._troubles[trouble] += 1
            count = self._troubles[trouble]
            said = self._said.get(trouble)
            if said is not None and now - said < _SAID_EVERY:
                return
            if kind == "slow" and count < _SLOW_TIMES:
                return
            self._said[trouble] = now
        times = "" if count == 1 else f" ({count} times so far)"
        if kind == "raised":
            error = cast("BaseException", told)
            _log.error(
                "the telemetry hook %s failed at %s%s; Zart goes on",
                hook,
                event,
                times,
                exc_info=error,
            )
        elif kind == "slow":
            _log.warning(
                "the telemetry hook %s took %.2f s for %s%s, and nothing else ran meanwhile: a hook that waits for "
                "something is to be subscribed with threaded=True",
                hook,
                told,
                event,
                times,
            )
        else:
            _log.warning(
                "the telemetry hook %s is too slow even for a thread of its own: a %s was dropped%s",
                hook,
                event,
                times,
            )


def _name(hook: object) -> str:
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return f"{module}.{getattr(hook, '__qualname__', None) or type(hook).__qualname__}"


hub: Final = Hub()


def subscribe(hook: Hook, /, *, threaded: bool = False) -> Subscription:
    """Have `hook` called with each event of this process: of its clients, and of its workers.

    It is called where the event happens, at once, so it must be quick; with `threaded` in a thread of its own, in order
    and a little later, and what it has no time for is dropped. What it raises is logged and counted, and goes no
    further.
    Raises UsageError for what cannot be called, and for an `async def`.
    """
    return hub.subscribe(hook, threaded=threaded)
