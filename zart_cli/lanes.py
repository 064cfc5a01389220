"""What lanes are called, and the work that is ready in them."""

import datetime as dt
from typing import Final, NamedTuple

COUNTED: Final = 2_000
"""Beyond so many nobody counts."""


class Ready(NamedTuple):
    """A row of `ready`."""

    queue: str
    name: str
    version: str | None
    is_step: bool
    tasks: int
    oldest: dt.timedelta | None
    served: bool

    @property
    def told(self) -> str:
        return lane_name(self.queue, self.name, self.version, is_step=self.is_step)


def lane_name(queue: str, name: str, version: str | None, *, is_step: bool) -> str:
    """What a lane stands for, in words."""
    told = f"step {name}" if is_step else name
    told += f" version {version}" if version is not None else ""
    return told if queue == "default" else f"{told} in queue {queue}"


def counted(number: int) -> str:
    """A count that ends at two thousand."""
    return f"over {COUNTED:,}" if number > COUNTED else f"{number:,}"
