"""How many examples a test draws, and which; and what may come of one.

By default a fixed few: the same ones on each machine. `ZART_FUZZ=20` draws twenty times as many, from the seed that
`--hypothesis-seed` gives (`make fuzz` chooses one and prints it).
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings

from zart.errors import ZartError

T = TypeVar("T")

FACTOR = int(os.environ.get("ZART_FUZZ", "0"))


def examples(few: int) -> Callable[[Any], Any]:
    """Draw so many examples, or `ZART_FUZZ` times as many."""
    return settings(
        max_examples=few * max(FACTOR, 1),
        derandomize=not FACTOR,
        print_blob=bool(FACTOR),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )


def attempt(action: Callable[..., T], *arguments: Any, **options: Any) -> tuple[T | None, str | None]:
    """What it returned, and the text of the error of this library by which it refused, one of them None.

    Any other error is a bug, and passes.
    """
    try:
        return action(*arguments, **options), None
    except ZartError as refusal:
        return None, str(refusal) or "no reason"
