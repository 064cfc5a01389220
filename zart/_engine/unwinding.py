"""How the tasks of a body hear that it was given back, or lost: each unwinds, through its own cleanup; none is left.

What is parked beyond doubt gets a `Suspended` through the future that it waits for; so does whoever makes a durable
call from then on. What is held up by something that is not ours is cancelled, and its durable calls make a suspension
of that.
"""

import asyncio
import ctypes
import logging
from typing import TYPE_CHECKING, Any, NoReturn

from zart._engine import parking
from zart._engine.entries import Key
from zart._engine.rest import RESTING_TURNS
from zart.errors import Suspended

if TYPE_CHECKING:
    from zart._engine.activation import Activation

_log = logging.getLogger("zart.worker")

_REFUSALS = 100
"""How many durable calls of an unwinding body raise `Suspended` before it is held where it is."""


class Unwinding:
    """The end of one activation's tasks."""

    def __init__(self, activation: "Activation") -> None:
        self._activation = activation
        self._refusals = 0
        self._unwinding: set[asyncio.Task[Any]] = set()
        """Tasks that have heard of the end, or will by themselves."""

    def begin(self) -> None:
        """The activation is closed."""
        tasks = self._activation.tasks
        current = asyncio.current_task(self._activation.loop)
        # The one whose call has closed this gets an exception of that call.
        unwinding = {task for task in tasks if task is current or parking.is_parked(task, tasks)}
        for future in [parking.recognised(task, tasks) for task in tasks]:
            if future is not None and not future.done():
                future.set_exception(Suspended())
                future.exception()  # a gather's children may never ask for it
        if not unwinding.issuperset(tasks):
            self._unwinding |= unwinding
            self._again(RESTING_TURNS)

    async def refuse_call(self, key: Key) -> NoReturn:
        """A durable call of a body that is being unwound.

        A loop that catches everything (`except BaseException`) would call for ever, without one turn of the event
        loop for anybody else. So in the end its calls do not return: the task stays, and does nothing. It is never
        finalised either, not even at the end of the process: closing it would set it going again.
        """
        self._refusals += 1
        if self._refusals > _REFUSALS:
            if self._refusals == _REFUSALS + 1:
                told = (
                    "execution %s: its body was told %d times to unwind and called again (%s); it is left hanging. "
                    "Catch Exception instead of BaseException in it"
                )
                _log.error(told, self._activation.claim.execution_id, _REFUSALS, key)
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(asyncio.current_task()))
            await self._activation.future()
        raise self.suspend(asyncio.current_task())

    def suspend(self, task: "asyncio.Task[Any] | None") -> Suspended:
        """What a durable call of this task raises after the end: the task unwinds by itself from there."""
        if task is not None:
            self._unwinding.add(task)
        return Suspended()

    def _again(self, turns: int) -> None:
        self._activation.loop.call_soon(self._go_on, turns, context=self._activation.host.base_context)

    def _go_on(self, turns: int) -> None:
        """Cancel what is held up by something that is not ours, once a few turns have shown that.

        A task that unwinds already is left alone: its cleanup may take its time. One that was about to run at the end
        goes on to what it waits for next, which may be what nobody will give it any more.
        """
        tasks, in_steps, unwinding = self._activation.tasks, self._activation.steps.tasks, self._unwinding
        unwinding.update(task for task in tasks if parking.is_parked(task, tasks))
        if turns:
            self._again(turns - 1)
            return
        for task in tasks.keys() - unwinding | in_steps:
            if parking.is_blocked(task):
                unwinding.add(task)
                if not task.cancelling() or task not in in_steps:
                    task.cancel()
        if not unwinding.issuperset(tasks):
            self._again(RESTING_TURNS)
