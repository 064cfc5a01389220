"""Starts that go together: what they share, and what they do not."""

import asyncio
from collections.abc import Sequence

import psycopg
import pytest

from zart import Durable, durable
from zart.client.gathering import Gathered, Gathering
from zart.client.starting import make_start, read_target
from zart.errors import ZartError


@durable("ship")
async def ship(number: int) -> int:
    return number


@durable("bill")
async def bill(number: int) -> int:
    return number


def gathered(number: int, fn: Durable[[int], int] = ship) -> Gathered:
    return Gathered(make_start(read_target(fn), number, id=None), awaited=False)


class Statements:
    """Notes what is sent; each statement waits until it is let go."""

    def __init__(self) -> None:
        self.sent: list[list[str | None]] = []
        self.let_go = asyncio.Event()
        self.poison: str | None = None

    async def send(self, group: Sequence[Gathered]) -> None:
        payloads = [one.start.input.payload for one in group]
        self.sent.append(payloads)
        await self.let_go.wait()
        if self.poison in payloads:
            raise psycopg.errors.UntranslatableCharacter("poison")


async def begin(gathering: Gathering, *starts: Gathered) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(gathering.start(start)) for start in starts]
    await asyncio.sleep(0)
    return tasks


async def test_what_comes_in_the_meantime_goes_together() -> None:
    """The first start goes alone and at once, the others with the next statement, those of a function each."""
    statements = Statements()
    gathering = Gathering(statements.send)
    tasks = await begin(gathering, gathered(1), gathered(2), gathered(3, bill), gathered(4))
    assert statements.sent == [["1"]]
    statements.let_go.set()
    await asyncio.gather(*tasks)
    assert statements.sent == [["1"], ["2", "4"], ["3"]]
    await gathering.start(gathered(5))
    assert statements.sent[-1] == ["5"]


async def test_one_that_cannot_be_stored_fails_alone() -> None:
    """What the database refuses is sent again one by one: only the caller to blame gets the error."""
    statements = Statements()
    statements.poison = "3"
    gathering = Gathering(statements.send)
    tasks = await begin(gathering, *(gathered(number) for number in range(1, 6)))
    statements.let_go.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [
        type(None),
        type(None),
        psycopg.errors.UntranslatableCharacter,
        type(None),
        type(None),
    ]


async def test_a_caller_that_gave_up_is_left_out() -> None:
    """What was cancelled before it was sent is not started."""
    statements = Statements()
    gathering = Gathering(statements.send)
    tasks = await begin(gathering, gathered(1), gathered(2), gathered(3))
    tasks[1].cancel()
    statements.let_go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert statements.sent == [["1"], ["3"]]


async def test_the_first_caller_gives_up() -> None:
    """Those who wait behind a start that was cancelled are sent all the same."""
    statements = Statements()
    gathering = Gathering(statements.send)
    first, second = await begin(gathering, gathered(1), gathered(2))
    first.cancel()
    statements.let_go.set()
    await second
    assert statements.sent == [["1"], ["2"]]


async def test_closing_tells_those_who_wait() -> None:
    """Nobody waits for ever for a client that was closed."""
    statements = Statements()
    gathering = Gathering(statements.send)
    first, second, third = await begin(gathering, gathered(1), gathered(2), gathered(3))
    first.cancel()
    await asyncio.wait([first])
    await asyncio.sleep(0)
    await gathering.close()
    for task in (second, third):
        with pytest.raises(ZartError, match="closed"):
            await task
