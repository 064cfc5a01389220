"""What notifications lead to: a look at once, as long as looks are worth it.

All workers listen to one channel, so a worker also hears of others' work, and of work that others were quicker to take.
One that has looked in vain lets the notifications that follow gather for some milliseconds, longer each time; none of
them is forgotten. The first look that finds something ends that.
"""

import asyncio
from collections.abc import Callable
from typing import Final

_SHORTEST_GAP: Final = 0.002
_LONGEST_GAP: Final = 0.025
"""From a look in vain to the next one that a notification leads to."""


class Hearing:
    """`stir` is called when it is time to look. Say when looks `begin`, and what they have come to (`end`)."""

    def __init__(self, stir: Callable[[], None]) -> None:
        self._stir = stir
        self._heard = False
        self._prompted = False
        self._since = 0.0
        self._later: asyncio.TimerHandle | None = None
        self.gap = 0.0
        """In seconds."""

    def hear(self) -> None:
        """A notification has come."""
        loop = asyncio.get_running_loop()
        wait = self._since + self.gap - loop.time()
        if wait <= 0:
            self._prompt()
        elif self._later is None:
            self._later = loop.call_later(wait, self._prompt)

    def begin(self) -> None:
        """A look begins: because of a notification, or for another reason."""
        self._prompted, self._heard = self._heard, False
        if self._prompted:
            self._since = asyncio.get_running_loop().time()

    def end(self, *, found: bool) -> None:
        """The look is over, and has found something, or nothing."""
        if found:
            self.gap = 0.0
            if self._later is not None:
                self._prompt()
        elif self._prompted:
            self.gap = min(max(2 * self.gap, _SHORTEST_GAP), _LONGEST_GAP)
            self._since = asyncio.get_running_loop().time()

    def _prompt(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._heard = True
        self._stir()
