"""What holds an activation: a worker, or a test."""

import datetime as dt
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import anyio

from zart._engine.alarms import Cancellable
from zart._engine.entries import Change, Claim, Entry, Key
from zart._engine.pauses import Rules
from zart._engine.transactions import Connected
from zart.calls import DurableSpec, StepCall, StepSpec

if TYPE_CHECKING:
    from zart._engine.activation import Activation


class Registered(NamedTuple):
    """A step that a worker has registered."""

    spec: StepSpec
    lane: int


class Host(Protocol):
    """What holds an activation: a worker, or a test."""

    @property
    def max_inflight_steps(self) -> int: ...
    @property
    def threads(self) -> anyio.CapacityLimiter: ...
    @property
    def resources(self) -> tuple[object, ...]: ...
    @property
    def fresh(self) -> bool:
        """Whether the lease stands for certain; when not, no attempt of a step begins."""
        ...

    @property
    def rules(self) -> Rules:
        """What people hold back; what it covers begins no attempt of a step."""
        ...

    @property
    def transactions(self) -> Connected | None:
        """Where steps have their transactions; None where there is no database."""
        ...

    @property
    def base_context(self) -> Context:
        """Each body starts in a copy of it."""
        ...

    def now(self) -> dt.datetime:
        """Durable time."""
        ...

    def call_at(self, when: dt.datetime, callback: Callable[[], None], /) -> Cancellable: ...
    def function(self, call: StepCall, key: Key, /) -> Callable[..., Any]:
        """What to run for a step: its own function, except in tests of a body."""
        ...

    def registered(self, claim: Claim, call: StepCall, /) -> Registered:
        """The step that workers are asked to run for a call. Raises UsageError for one that is not registered."""
        ...

    def queue(self, claim: Claim, /) -> str:
        """The queue that it was claimed from, for telemetry."""
        ...

    def lane(self, spec: DurableSpec, /) -> int:
        """The lane of a child's function."""
        ...

    def start_child(self, entry: Entry, done: Callable[[Entry, Exception | None], None], /) -> None:
        """Start a child under a chosen id; `done` is told what became of it."""
        ...

    def write(self, entry: Entry, /) -> None: ...
    def end(self, change: Change, /) -> None: ...
    def suspends(self, activation: "Activation", due: dt.datetime | None, /) -> bool:
        """The body is parked until `due` (None: until there is news): whether to suspend it now."""
        ...

    def keeps_dormant(self, activation: "Activation", /) -> bool:
        """Whether to keep a body that is suspended in memory; then it is the host's to wake or to forget."""
        ...

    def forgets(self, activation: "Activation", /) -> None:
        """A dormant activation is none any more."""
        ...

    def holds_back(self, activation: "Activation", /) -> bool:
        """Whether what was just committed is to be replayed instead of being delivered: a mode for tests."""
        ...

    def rests(self, activation: "Activation", /) -> None:
        """The body has come to rest with nothing running: it takes no slot."""
        ...

    def goes_on(self, activation: "Activation", /) -> None:
        """The body rests no more."""
        ...

    def sleeps(self, activation: "Activation", /) -> None:
        """The suspension of a dormant activation is committed."""
        ...

    def ended(self, activation: "Activation", /) -> None:
        """The ending is committed, or the execution is no longer ours."""
        ...
