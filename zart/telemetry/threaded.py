"""A thread of its own for a hook that is slow: events wait for it in a queue, and the engine waits for nothing."""

import queue
import threading
from collections.abc import Callable
from typing import Final

from zart.telemetry.events import TelemetryEvent

MOST_WAITING: Final = 10_000
"""Events; beyond that the newest are dropped."""
_ENDS_WITHIN: Final = 5.0
"""Seconds in which `close` lets the hook have what waits."""


class Threaded:
    """Calls `deliver` in a thread, in the order of `put`; `dropped` gets what there was no room for."""

    def __init__(
        self,
        name: str,
        deliver: Callable[[TelemetryEvent], None],
        dropped: Callable[[TelemetryEvent], None],
    ) -> None:
        self._deliver = deliver
        self._dropped = dropped
        self._waiting: queue.Queue[TelemetryEvent | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name=f"zart telemetry {name}", daemon=True)
        self._thread.start()

    def put(self, event: TelemetryEvent) -> None:
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            self._dropped(event)

    def close(self) -> None:
        """Give the hook some seconds for what waits, and end the thread."""
        try:
            self._waiting.put(None, timeout=_ENDS_WITHIN)
        except queue.Full:
            return  # it hangs in the hook: the thread ends with the process
        if threading.current_thread() is not self._thread:
            self._thread.join(_ENDS_WITHIN)

    def _run(self) -> None:
        while (event := self._waiting.get()) is not None:
            self._deliver(event)
