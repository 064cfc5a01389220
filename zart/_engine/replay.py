"""How a body is given what is recorded of it, and when it goes live.

Whatever a body asks for while the log is not at its end waits until the body has come to rest, and then

    recorded        for its *turn*: entries are handed out in the order of their numbers, one at a time
    not recorded    at the *gate*, until the activation goes live; what goes on by itself (a limit, work that is given
                    away) is called back *when live*

A body of one task that asks in the recorded order takes a short cut (`is_turn_of`): the entry whose turn it is goes to
it without a turn of the loop.

An entry that nobody asks for is passed over once the body cannot ask for it any more: at once if all of it is parked,
else when it has rested for a while, since a plain await may be what it goes on after. Whoever asks for it later still
gets it; it is *late*, and goes before everything else.

At the end of the log whatever waits at the gate is held against it first. Nothing runs if one call contradicts it:
then the code has changed under the run. Otherwise all may run, in the order in which they asked.

Most bodies begin with an empty log. For them this is only the way to go live.
"""

import asyncio
import functools
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from zart._engine import parking
from zart._engine.contradictions import refuse_contradiction
from zart._engine.entries import Key, Record, StoredEntry
from zart._engine.parking import DurableFuture
from zart._engine.points import reach
from zart.errors import Suspended

if TYPE_CHECKING:
    from zart._engine.activation import Activation

_PATIENCE: Final = 5.0
"""How long, in seconds, a replay waits for plain awaits of a body before it passes over an entry nobody asks for."""
_PATIENCE_IN_MEMORY: Final = 0.05


class _AtGate(NamedTuple):
    """A call without a record, and who waits for it to be let through."""

    key: Key
    digest: bytes | None
    future: DurableFuture


class _WhenLive(NamedTuple):
    """What is to be done once the log is at its end."""

    key: Key | None
    digest: bytes | None
    used: int
    gives: bool
    act: Callable[[], None]


class Replay:
    """The replay of one activation. See the module."""

    __slots__ = (
        "_activation",
        "_gate",
        "_log",
        "_out_of_patience",
        "_patience",
        "_rest",
        "_turns",
        "_when_live",
    )

    def __init__(self, activation: "Activation") -> None:
        self._activation = activation
        self._log = activation.log
        self._rest = activation.rest
        self._turns: dict[Key, Callable[[Record], None]] = {}
        self._gate: list[_AtGate] = []
        self._when_live: list[_WhenLive] = []
        self._patience: asyncio.TimerHandle | None = None
        self._out_of_patience = False

    # ------------------------------------------------------------ what is asked for

    def is_turn_of(self, record: StoredEntry) -> bool:
        """The short cut: the only task of the body that does not rest asks for the entry whose turn it is."""
        self._rest.happens()
        if self._log.next is record and not self._activation.late and self._only_this_goes_on():
            self._log.pass_on()
            reach("replay.delivering")
            self._use(record)
            self._rest.stir()  # what comes next may be for nobody who asks: a cancel, or the end of the log
            return True
        return False

    def _only_this_goes_on(self) -> bool:
        alone = len(self._activation.tasks) == 1 and not self._turns
        return alone or self._rest.rests_but_for(asyncio.current_task())

    def turn(self, record: StoredEntry) -> DurableFuture:
        """Wait until it is this record's turn."""
        activation = self._activation
        future = activation.future()
        self.on_turn(record, functools.partial(activation.hand_over, future))
        return future

    def on_turn(self, record: StoredEntry, deliver: Callable[[Record], None]) -> None:
        """The same for what goes on by itself: `deliver` gets the record."""
        upcoming = self._log.next
        if upcoming is None or (record.seq or 0) < (upcoming.seq or 0):
            activation = self._activation
            if activation.late is None:
                activation.late = deque()
            activation.late.append(record)
        self._turns[record.key] = deliver
        self._rest.stir()

    def gate(self, key: Key, digest: bytes | None) -> DurableFuture:
        """Wait until the activation goes live: the call has no record."""
        future = self._activation.future()
        self._gate.append(_AtGate(key, digest, future))
        self._rest.stir()
        return future

    def when_live(
        self,
        key: Key | None,
        digest: bytes | None,
        act: Callable[[], None],
        *,
        gives: bool = False,
    ) -> None:
        """Do something once the log is at its end: now, if it is.

        `key` is a call that has no record and goes on by itself, so its branch may use more of the log until then;
        `gives`: it gives work away.
        """
        activation = self._activation
        if activation.replaying:
            used = self._log.used(key.path) if key is not None else 0
            self._when_live.append(_WhenLive(key, digest, used, gives, act))
            self._rest.stir()
            return
        if key is not None:
            refuse_contradiction(activation, key, digest, gives=gives)
        activation.busy()
        act()

    # ------------------------------------------------------------ what is handed out

    def go_on(self) -> None:
        """The body rests. Hand out the entry whose turn it is; at the end of the log, go live."""
        while (record := self._log.next) is not None:
            if record.key.kind == "cancel":
                self._log.pass_on()
                self._activation.cancels.deliver(record)
                self._rest.stir()
                return
            if record.key in self._turns:
                self._log.pass_on()
                self.give_turn(record)
                return
            if not self._log.was_asked(record.key) and not self._may_pass_over():
                return
            self._log.pass_on()
        self.end()

    def give_turn(self, record: StoredEntry) -> None:
        """It is the turn of this one, which somebody has asked for."""
        deliver = self._turns.pop(record.key, None)
        if deliver is not None:
            reach("replay.delivering")
            self._use(record)
            deliver(record)
            reach("replay.delivered")
        self._rest.stir()

    def _use(self, record: StoredEntry) -> None:
        activation = self._activation
        self._log.use(record)
        activation.heard = max(activation.heard, record.seq or 0)
        if record.key.kind == "wait":
            activation.waits.replayed(record)

    # ------------------------------------------------------------ what nobody asks for

    def _may_pass_over(self) -> bool:
        """Whether nobody can ask any more for the entry whose turn it is, as things stand."""
        if self._out_of_patience or self._rest.all_parked:
            self._out_of_patience = False
            return True
        if self._patience is None:
            activation = self._activation
            memory = all(parking.only_in_memory(task, activation.tasks) for task in activation.tasks)
            delay = _PATIENCE_IN_MEMORY if memory else _PATIENCE
            self._patience = activation.loop.call_later(
                delay, self._lose_patience, context=activation.host.base_context
            )
        return False

    def _lose_patience(self) -> None:
        self._patience = None
        self._out_of_patience = True
        self._rest.stir()

    def close(self) -> None:
        """The activation is closed: nothing is waited for any more."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    # ------------------------------------------------------------ the end of the log

    def end(self) -> None:
        """The log is at its end: go live, unless a person wants something of it done again."""
        reach("replay.over")
        repair = self._activation.repair
        if repair is not None:
            repair.meet(None)
        else:
            self._go_live()

    def _go_live(self) -> None:
        """What had no record may run now."""
        activation = self._activation
        gate, self._gate = self._gate, []
        when_live, self._when_live = self._when_live, []
        try:
            for waiting in gate:
                if not waiting.future.done():
                    refuse_contradiction(activation, waiting.key, waiting.digest)
            for later in when_live:
                if later.key is not None:
                    refuse_contradiction(activation, later.key, later.digest, later.used, gives=later.gives)
        except Suspended:
            return
        activation.replaying = False
        self.close()
        for waiting in gate:
            parking.settle(waiting.future)
        for later in when_live:
            later.act()
        if "waits" in activation.made:
            activation.waits.match_all()
        if activation.has_given_away:
            activation.delegated.go_live()
        activation.cancels.go_live()
        self._rest.stir()
