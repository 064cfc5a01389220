"""Handles: what a body has under way beside itself.

A handle stands for a call that goes on while the body does something else: a scheduled step, a child, a wait. It is
over when the body is told so, which is an entry of the log like any other; from then on awaiting it costs nothing.
"""

from collections.abc import Coroutine, Generator
from typing import Any, Generic, Protocol, TypeVar

from zart.errors import UsageError

R_co = TypeVar("R_co", covariant=True)


class Pending(Protocol):
    """What a place makes of a call that goes on by itself."""

    @property
    def name(self) -> str:
        """What was called."""
        ...

    @property
    def execution_id(self) -> str:
        """The id of a child."""
        ...

    def wait(self) -> Coroutine[Any, Any, Any]:
        """Its value, or its error, once it is over."""
        ...

    def cancel(self) -> Coroutine[Any, Any, bool]: ...


class Handle(Generic[R_co]):
    """Something under way; awaiting it gives its value or raises its error, as often as you like.

    It belongs to the body that made it, and cannot be stored.
    """

    __slots__ = ("_pending",)

    def __init__(self, pending: Pending) -> None:
        self._pending = pending

    def __await__(self) -> Generator[Any, Any, R_co]:
        return self._pending.wait().__await__()

    async def cancel(self) -> bool:
        """Ask it to end; True if it was still under way as far as the body knows.

        Awaiting it raises ExecutionCancelled once it has ended so; a step or child that completes all the same gives
        its value.
        """
        return await self._pending.cancel()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._pending.name!r}>"


class StepHandle(Handle[R_co]):
    """A scheduled step."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """Its name, rendered."""
        return self._pending.name


class ChildHandle(Handle[R_co]):
    """A child execution."""

    __slots__ = ()

    @property
    def id(self) -> str:
        """Its execution id."""
        return self._pending.execution_id


class EventHandle(Handle[R_co]):
    """A wait for an event, which has begun: the next event of its name that nobody else waits for is its own."""

    __slots__ = ()


class TimerHandle(Handle[None]):
    """A length of time, which has begun."""

    __slots__ = ()


def pendings_of(handles: tuple[Handle[Any], ...], called: str) -> list[Pending]:
    """What is behind handles. Raises UsageError, naming `called`, for anything else."""
    pendings: list[Pending] = []
    for handle in handles:
        if not isinstance(handle, Handle):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"{called} takes handles, not {handle!r}: make them with schedule_step, start_child, event or timer; "
                "for calls that are awaited together use asyncio.gather"
            )
        pendings.append(handle._pending)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return pendings
