"""The numbers of lanes: what a worker subscribes to, derived from names so that nobody has to give them out.

The same as the SQL function `zart_lane`. A scheduled step has a lane of its own; no function's name has the control
character in it that marks one.
"""

import functools
import hashlib

_STEP = "\x1estep\x1e"
_BITS = (1 << 62) - 1


@functools.lru_cache(maxsize=4096)
def lane_of(queue: str, name: str, version: str | None) -> int:
    """The lane of a durable function."""
    joined = f"{queue}\x1f{name}\x1f{version or ''}".encode()
    return int.from_bytes(hashlib.sha256(joined).digest()[:8]) & _BITS | (_BITS + 1)


def step_lane(queue: str, function: str) -> int:
    """The lane of scheduled calls of a step."""
    return lane_of(queue, step_name(function), None)


def step_name(function: str) -> str:
    """What stands for a step where a lane has the name of a durable function."""
    return f"{_STEP}{function}"


def step_of(name: str) -> str | None:
    """The step that a lane's name stands for; None where it is a durable function's."""
    return name.removeprefix(_STEP) if name.startswith(_STEP) else None
