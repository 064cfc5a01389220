"""Steps and durable functions called outside of any execution: they simply run.

In a process where a Client or a Worker is open such a call is often a mistake, since nothing of it is
recorded; it is said once for each place in the code.
"""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import anyio.to_thread

from zart.errors import NotDurableWarning

_open: dict[Literal["client", "worker"], int] = {"client": 0, "worker": 0}
_warned: set[tuple[str, int]] = set()


@contextmanager
def opened(what: Literal["client", "worker"]) -> Generator[None, None, None]:
    """Count a Client or Worker as open in this process while the block runs."""
    _open[what] += 1
    try:
        yield
    finally:
        _open[what] -= 1
        if not any(_open.values()):
            _warned.clear()


def warn_step(name: str) -> None:
    """Warn at the place two frames above, once, that a step runs unrecorded, if a Worker is open here."""
    if _open["worker"]:
        _warn(
            f"the step {name!r} is called outside of a durable function while a Worker is open: it runs "
            "now, and "
            "nothing of it is recorded. Call it in the body of a durable function, or call `.fn` if a "
            "plain call is "
            "what you want"
        )


def warn_durable(name: str) -> None:
    """Warn at the place two frames above, once, that a durable function runs unrecorded beside a Client or
    Worker.
    """
    if _open["worker"] or _open["client"]:
        _warn(
            f"the durable function {name!r} is called plainly while a Client or Worker is open: it runs "
            "now, and a "
            "crash loses it. Start it with `client.start(...)`, or call `.fn` if a plain call is what you "
            "want"
        )


def _warn(text: str) -> None:
    frame = sys._getframe(3)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    place = (frame.f_code.co_filename, frame.f_lineno)
    if place not in _warned:
        _warned.add(place)
        warnings.warn(text, NotDurableWarning, stacklevel=4)


async def run_plainly(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, threaded: bool
) -> Any:
    """Run the function of a step: an `async def` here, a plain `def` in a worker thread, as it would be
    durably.
    """
    if not threaded:
        return await fn(*args, **kwargs)
    result = await anyio.to_thread.run_sync(functools.partial(fn, *args, **kwargs))
    return await result if inspect.isawaitable(result) else result
