"""What the workers of case h have registered. `left` is not among it: it is started, and they leave it alone."""

import zart
from zart import durable


@durable("taken")
async def taken(number: int) -> int:
    return number


@durable("left")
async def left(number: int) -> int:
    return number


registry = zart.Registry(taken)
