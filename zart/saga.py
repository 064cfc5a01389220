"""A block of a durable body that is undone when it fails.

    async with zart.saga() as saga:
        saga.add(release, order)                # the undo first, then the act
        await reserve(order)
        saga.add(refund, order)
        await charge(order)

The undo is registered before the act, since an act that is cut off, or whose answer is lost, may have had its effect.
So an undo must be harmless when its act never happened. What is undone when, and what happens if an undo fails, is the
matter of the place where the saga was opened.
"""

import inspect
from types import TracebackType
from typing import Any, ParamSpec, Self

from zart.context import Undos
from zart.errors import UsageError
from zart.step import Step

P = ParamSpec("P")


class Saga:
    """What `zart.saga()` opens: register how to undo each act, and a failure or a cancel undoes it all.

    The undos run when an exception or a cancel leaves the block: the last one first, one at a time, each a step of the
    body with its own retries, recorded and never run again. Before the first one, branches that were started within
    the block are cancelled and have ended. Then the exception goes on. A block that ends well, by a `return` too,
    undoes nothing; within another saga it stays that one's to undo.

    An undo that fails for good blocks the execution. Its failure says what is undone and what is not, and after a
    resume it goes on with that undo.
    """

    def __init__(self, undos: Undos) -> None:
        self._undos = undos

    def add(self, undo: Step[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Register a step that undoes the act which comes next, and its arguments.

        Raises UsageError when it is no step or does not take these arguments, and once the block is over.
        """
        if not isinstance(undo, Step):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"saga.add takes the step that undoes, and its arguments, not {undo!r}: an undo is recorded, so that "
                "it is not run again after a crash. Give it a step, not a call of one; for a method, the step of its "
                "class and the instance: saga.add(Shop.release, shop, order)"
            )
        try:
            inspect.signature(undo).bind(*args, **kwargs)
        except TypeError as error:
            raise UsageError(f"saga.add: {undo!r} cannot be called so later on: {error}") from None
        self._undos.add(undo.call_of(args, kwargs))

    async def compensate(self) -> None:
        """Undo everything now, and only once: what comes later, a call or an exception, undoes nothing more."""
        await self._undos.compensate()

    async def __aenter__(self) -> Self:
        self._undos.enter()
        return self

    async def __aexit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        await self._undos.leave(e)
