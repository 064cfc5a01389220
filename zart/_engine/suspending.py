"""What becomes of a body that rests with nothing to deliver: it is held, suspended, kept dormant or paused.

    held        A branch waits for something that is not ours, or its wait is over so soon that the host keeps the
                execution: it takes no slot of the worker.
    suspended   All of it is parked, and the host does not hold it: the suspension is the activation's ending, and the
                body is unwound.
    dormant     The same suspension is written, and the body stays as it is in memory. The execution is everybody's
                then. If the next claim of it is the host's own (`is_continued_by`), nobody has held it in between, and
                the activation goes on under that claim with what it has brought (`wake`). Else it is unwound late
                (`Activation.forget`); so it is as soon as anything in it moves by itself.
    paused      Like suspended, where a rule of people's holds a step back: no wait is woken before the rule has ended.

Whether a body is kept decides nothing but the price of going on: what it is given is the same either way.
"""

import functools
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from zart._engine import telling
from zart._engine.entries import Change, Claim, Paused, Suspended, next_epoch
from zart._engine.points import reach
from zart.telemetry.hub import hub

if TYPE_CHECKING:
    from zart._engine.activation import Activation


def suspend_if_parked(activation: "Activation") -> bool:
    """The body is at rest, and there is nothing to deliver. Whether it has ended with that, or sleeps now."""
    if not activation.rest.all_parked:
        return False
    due = activation.alarms.due
    if not activation.host.suspends(activation, due):
        return False
    reach("suspension.begin")
    if "holds" in activation.made and (paused := activation.holds.ending()) is not None:
        _pause(activation, paused)
        return True
    pauses = activation.phase.pauses
    waiting = ", ".join(filter(None, (str(activation.waits), str(activation.delegated), *pauses)))
    suspension = Suspended(
        seen=activation.signal,
        wake_at=due,
        wake_at_done=activation.delegated.wake_at_done,
        waiting_for=waiting or None,
    )
    if activation.host.keeps_dormant(activation):
        _fall_asleep(activation, suspension)
    else:
        activation.end(suspension)
        reach("suspension.unwinding")
    return True


def _pause(activation: "Activation", ending: Paused) -> None:
    """A rule holds back what the body would do next; nobody wakes it before the rule has ended."""
    if activation.claim.step is None:
        activation.notes.append(("paused", f"{ending.waiting_for}, by rule {ending.rule}"))
    activation.end(ending)
    reach("suspension.unwinding")


def _fall_asleep(activation: "Activation", suspension: Suspended) -> None:
    """Write the suspension, and stay as it is."""
    reach("ending.begin")
    activation.save_answers()
    activation.save_waits()
    activation.alarms.silence()
    activation.dormant = activation.change(suspension, functools.partial(_asleep, activation))
    activation.notes.clear()
    activation.host.end(activation.dormant)
    reach("suspension.kept")


def _asleep(activation: "Activation", change: Change, error: Exception | None) -> None:
    """The verdict on the suspension."""
    if change is not activation.dormant:
        return  # it is awake again, or forgotten: the claim that woke it was there before this verdict
    activation.outgoing.ended(error)
    if hub.listening:
        telling.over(activation, change.ending if error is None else None)
    if error is not None:
        activation.forget()
        return
    reach("ending.acknowledged")
    activation.host.sleeps(activation)


def is_continued_by(activation: "Activation", run_id: UUID, epoch: int) -> bool:
    """Whether a claim with this epoch comes right after this dormant activation's own."""
    return activation.dormant is not None and (run_id, epoch) == (
        activation.claim.run_id,
        next_epoch(activation.claim.epoch),
    )


def wake(activation: "Activation", claim: Claim) -> None:
    """Go on under a new claim."""
    reach("claim.goes-on")
    if hub.listening and activation.dormant is not None:
        telling.goes_on(activation, activation.dormant.ending, claim)
    activation.claim = msgspec.structs.replace(claim, payload=activation.claim.payload)
    activation.dormant = None
    activation.resting = False
    activation.signal = claim.signal
    activation.outgoing.claimed_again(claim)
    activation.waits.offer(claim.events)
    activation.delegated.news(claim.done, claim.arrived)
    activation.cancels.request(claim.cancel)
    activation.alarms.go_on()
    activation.stir()
    activation.end_at_last()
