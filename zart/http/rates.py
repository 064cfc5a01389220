"""How often a caller may ask: a bucket of tokens for each, which fills with time."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

_MOST_CALLERS: Final = 10_000


class Rates:
    """The buckets of all callers; of those that were not heard of for longest, the oldest are forgotten."""

    def __init__(
        self,
        rate: float,
        burst: int,
        *,
        most_callers: int = _MOST_CALLERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._most = most_callers
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What was left in each, and when that was; the one asked for last is the last."""

    def take(self, caller: str) -> float:
        """Zero if the caller may go on; else the seconds after which it may ask again."""
        now = self._clock()
        left, at = self._buckets.pop(caller, (self._burst, now))
        left = min(left + (now - at) * self._rate, self._burst)
        allowed = left >= 1
        self._buckets[caller] = (left - 1 if allowed else left, now)
        while len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate

    def __len__(self) -> int:
        return len(self._buckets)
