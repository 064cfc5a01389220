"""When a body rests: nothing but the engine, the network or another process can make it go on.

Rest cannot be asked for. It is found out by looking at the body once in each turn of the loop, for as long as there is
something to deliver or to decide. A look sees two things:

    its tasks   All are blocked: each waits for a future that is not done, or is in a step. Whatever makes a task go on
                makes its future done one turn before the task runs, so no step of a task falls between two looks.
    the loop    What goes on between a task that has ended and another that waits (a gather, a shield, a callback of
                the user's) are callbacks, which no task shows. If the loop's queue of them is empty, it is *quiet*:
                nothing that has happened so far can have any effect yet to come. Then one look is enough, and exact.
                Where the queue cannot be seen, or is busy with something else, eight turns must go by in which all
                tasks are blocked and nothing happens.

All bodies on a loop are looked at together, or each would find the loop busy with what the one before it has set going.

Looking at every task at each look would make many branches quadratic. So each task is looked at until it is seen
blocked, and then let be until it is woken:

    A task of the body that is not in `_awake` waits for a future that tells us when it is done. A `DurableFuture`
    does so at once, any other by a callback: in the very turn in which the task hears of it.

So of what the engine itself has made done, no look is ever wrong. From the moment when another future is done until
its callbacks run, a look takes its task for blocked. There is no such task when the loop is quiet: all callbacks have
run. Otherwise its return makes the turns count from the beginning, and eight turns are one look more than eight
looks: the one that may have been deceived.

Whether tasks are parked is asked in the same way: one that is so for as long as it is blocked is not asked again.
"""

import asyncio
import functools
import gc
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from zart._engine import parking

if TYPE_CHECKING:
    from zart._engine.activation import Activation

RESTING_TURNS = 8
"""Turns of a busy loop without anything happening, after which a body is at rest."""


class _Looks:
    """The bodies on one loop that are being looked at, all of them once in each turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = _queue_of(loop)
        self._context = Context()
        self._looking: deque[Rest] = deque()

    def add(self, rest: "Rest", loop: asyncio.AbstractEventLoop) -> None:
        """Look at this body in the next turn, too."""
        if not self._looking:
            loop.call_soon(self._look, loop, context=self._context)
        self._looking.append(rest)

    @property
    def quiet(self) -> bool:
        """Whether the loop has nothing to run but these looks, as seen from one of its callbacks."""
        return self._queue is not None and len(self._queue) <= bool(self._looking)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        looking, self._looking = self._looking, deque()
        quiet = self.quiet
        try:
            while looking:
                looking.popleft().look(quiet=quiet)
        finally:
            for rest in looking:  # the loop is being stopped by an exception; it may be run again
                self.add(rest, loop)


_looks: WeakKeyDictionary[asyncio.AbstractEventLoop, _Looks] = WeakKeyDictionary()


def _looks_on(loop: asyncio.AbstractEventLoop) -> _Looks:
    looks = _looks.get(loop)
    if looks is None:
        for closed in [other for other in _looks if other.is_closed()]:
            del _looks[closed]  # whoever was still looked at would keep its loop for ever
        looks = _looks[loop] = _Looks(loop)
    return looks


def _queue_of(loop: asyncio.AbstractEventLoop) -> "deque[Any] | None":
    """The loop's queue of callbacks that are ready to run; None if it cannot be found.

    asyncio's loops have it as an attribute. uvloop hides it, but not from the garbage collector. Whatever is found is
    put to the proof.
    """
    known: Any = getattr(loop, "_ready", None)
    candidates: list[Any] = gc.get_referents(loop) if known is None else [known]
    proof = loop.call_soon(_nothing)
    try:
        for found in candidates:
            if issubclass(type(found), deque) and found and found[-1] is proof:
                queue: deque[Any] = found
                return queue
        return None
    finally:
        proof.cancel()


def _nothing() -> None:
    pass


class Rest:
    """Looks for the rest of one body, and tells its activation. See the module."""

    __slots__ = ("_activation", "_awake", "_calm", "_context", "_doubtful", "_looking", "_looks")

    def __init__(self, activation: "Activation") -> None:
        self._activation = activation
        self._context = activation.host.base_context
        self._looks = _looks_on(activation.loop)
        self._awake: dict[asyncio.Task[Any], None] = {}
        """The tasks that are not known to be blocked."""
        self._doubtful: dict[asyncio.Task[Any], None] = {}
        """Those, and the ones that are not known to be parked for as long as they are blocked."""
        self._looking = False
        self._calm = 0
        """How many turns have gone by since something has happened."""

    def begins(self, task: "asyncio.Task[Any]") -> None:
        """A task of the body, from now on."""
        self._awake[task] = self._doubtful[task] = None
        self._calm = 0

    def ends(self, task: "asyncio.Task[Any]") -> None:
        self._awake.pop(task, None)
        self._doubtful.pop(task, None)
        self._calm = 0

    def happens(self) -> None:
        """The body has done something, or something was done to it."""
        self._calm = 0

    def stir(self) -> None:
        """The same, and there may be something to do once it rests."""
        self._calm = 0
        if not self._looking and not self._activation.closed:
            self._looking = True
            self._looks.add(self, self._activation.loop)

    def look(self, *, quiet: bool) -> None:
        """The body's turn to be looked at; `quiet` says whether the loop was, when this turn's looks began."""
        activation = self._activation
        if activation.closed or activation.nothing_to_look_for:
            self._looking = False
        elif not self._all_blocked():
            self._calm = 0
            self._looks.add(self, activation.loop)
        elif quiet or self._calm >= RESTING_TURNS:
            self._looking = False
            self._context.run(activation.at_rest)
        else:
            self._calm += 1
            self._looks.add(self, activation.loop)

    def rests_but_for(self, task: "asyncio.Task[Any] | None") -> bool:
        """Whether nothing goes on in the body beyond doubt but this task of it, which runs now."""
        return self._looks.quiet and self._all_blocked(task)

    def _all_blocked(self, but_for: "asyncio.Task[Any] | None" = None) -> bool:
        """Whether no task of the body is about to run. Lets those be that are blocked."""
        in_steps = self._activation.steps.tasks
        for task in list(self._awake):
            future = parking.waits_for(task)
            if future is not None and not future.done():
                del self._awake[task]
                if isinstance(future, parking.DurableFuture) and future.woken is None:
                    future.woken = functools.partial(self._woken, task)
                else:
                    future.add_done_callback(functools.partial(self._woken, task), context=self._context)
            elif task not in in_steps and task is not but_for:
                # One that has just ended is about to run, too: those who wait for it have not heard of it.
                return False
        return True

    @property
    def all_parked(self) -> bool:
        """Whether every task of the body waits for the engine or for another task that does, beyond doubt."""
        body = self._activation.tasks
        for task in list(self._doubtful):
            if not parking.is_parked(task, body):
                return False
            if task not in self._awake and parking.stays_parked(task, body):
                del self._doubtful[task]
        return True

    def _woken(self, task: "asyncio.Task[Any]", _future: "asyncio.Future[Any] | None" = None) -> None:
        if task in self._activation.tasks:
            self._awake[task] = self._doubtful[task] = None
            if task not in self._activation.steps.tasks:
                self._calm = 0
