"""What holds a step up that is no entry of the log: the time of its next attempt, a lease in doubt, a thread.

A replay knows nothing of these, and the body observes nothing of them but the time that has passed. They differ in what
they let the worker do meanwhile:

    the next attempt's time    It has a row and an alarm, so the body is *parked*, and may be suspended until then.
    a lease, a thread          They are things of this process. Whoever went on after a suspension would know nothing
                               of them, so the body is not parked: it stays in memory as it is.
"""

import asyncio
import datetime as dt
import functools
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final

from zart._engine import parking
from zart.errors import Suspended

if TYPE_CHECKING:
    from zart._engine.activation import Activation
    from zart._engine.branch import Branch

_FRESH_AGAIN: Final = 0.05
"""Seconds between two looks at a lease that is in doubt."""


async def until_due(branch: "Branch", until: dt.datetime, what: str) -> None:
    """Wait until the next attempt of a step is due; `what` tells people which."""
    activation = branch.activation
    future = activation.future()
    alarm = activation.alarms.set(until, functools.partial(parking.settle, future))
    activation.phase.pauses[what] = until
    activation.stir()
    try:
        await branch.parked(future)
    finally:
        activation.phase.pauses.pop(what, None)
        alarm.cancel()
    activation.busy()


async def stay_with(branch: "Branch", thread: "asyncio.Future[None]", until: dt.datetime) -> None:
    """Until a thread that ignores its limit has returned, or the next attempt is due.

    The body is not parked meanwhile: who goes on after a suspension would know nothing of the thread, and begin an
    attempt beside it.
    """
    activation = branch.activation
    due: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    alarm = activation.alarms.set(until, functools.partial(parking.settle, due))
    activation.stir()
    try:
        await asyncio.wait([thread, due], return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        if activation.closed:
            raise Suspended from None
        raise
    finally:
        alarm.cancel()
    activation.busy()


async def until_fresh(branch: "Branch") -> None:
    """After a long stop others may have taken over: wait until the lease is renewed, or this is unwound.

    The body is not parked meanwhile: there is nothing that would wake it up.
    """
    activation = branch.activation
    host = activation.host
    activation.held_up += 1
    try:
        while not host.fresh:
            future = activation.future()
            activation.loop.call_later(_FRESH_AGAIN, parking.settle, future, context=host.base_context)
            await branch.parked(future)
            if activation.closed:  # between the moment when the pause was over and this one
                raise Suspended
    finally:
        activation.held_up -= 1


async def attend(activation: "Activation", waiting: Awaitable[object]) -> None:
    """Wait for something in this process. The body is not parked meanwhile: nobody else would wake it up."""
    activation.held_up += 1
    try:
        await waiting
    finally:
        activation.held_up -= 1
    if activation.closed:
        raise Suspended
