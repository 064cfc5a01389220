"""The event loop of code that is not given one: uvloop's, where that is installed."""

import asyncio
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the loop; None: asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 (the extra `fast` brings it)
    except ImportError:
        return None
    return uvloop.new_event_loop
