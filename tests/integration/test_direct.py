"""Statements straight to libpq: values arrive as they were, and every answer goes to its own question."""

import asyncio
import datetime as dt
import enum
import gc
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from tests.support.floor import Floor
from tests.support.proxy import Proxy
from zart._postgres.direct import Direct, Statement


class Colour(enum.StrEnum):
    RED = "red"


@asynccontextmanager
async def line(dsn: str, *, prepare_threshold: int | None = 2) -> AsyncIterator[Direct]:
    connection = await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, prepare_threshold=prepare_threshold
    )
    direct = Direct(connection)
    try:
        yield direct
    finally:
        direct.close()
        await connection.close()


VALUES = [
    ("text", "Grüße, 'quoted' \\ and %"),
    ("text", Colour.RED),
    ("bigint", -(2**62)),
    ("bool", True),
    ("bytea", b"\x00\xff\\x"),
    ("uuid", uuid.UUID(int=7)),
    ("timestamptz", dt.datetime(2026, 3, 1, 12, 30, 15, 123456, dt.UTC)),
    ("interval", dt.timedelta(days=3, seconds=5, microseconds=7)),
    ("text[]", ["a", None, ""]),
    ("bytea[]", [b"\x00", None]),
    ("bool[]", [True, False]),
    ("timestamptz[]", [dt.datetime(1999, 1, 1, tzinfo=dt.UTC), None]),
    ("uuid[]", [uuid.UUID(int=8)]),
    ("int[]", []),
    ("text", None),
]


@pytest.mark.parametrize("prepare_threshold", [2, None])
@pytest.mark.parametrize(("type", "value"), VALUES)
async def test_a_value_comes_back_as_it_was(dsn, type, value, prepare_threshold):
    """Sent as it is the first time, prepared the second, and in a pipeline."""
    statement = Statement(f"SELECT %(value)s::{type}, 7 %% 4".encode())
    async with line(dsn, prepare_threshold=prepare_threshold) as direct:
        for _ in range(3):
            assert await direct.rows(statement, {"value": value}) == [(value, 3)]
        asked = [(statement, {"value": value})] * 2
        assert await direct.rows_of_each(asked) == [[(value, 3)]] * 2


async def test_text_with_a_nul_is_refused(dsn):
    """The server would get what stands before it."""
    async with line(dsn) as direct:
        with pytest.raises(psycopg.DataError, match="NUL"):
            await direct.rows(Statement(b"SELECT %(value)s::text"), {"value": "a\0b"})
        assert await direct.rows(Statement(b"SELECT 1"), {}) == [(1,)]


async def test_the_answer_to_an_abandoned_question_goes_to_nobody(dsn):
    """Whoever asks next waits until it is here, and gets his own."""
    wait = Statement(b"SELECT 'late' FROM pg_advisory_xact_lock(7)")
    async with Floor(dsn) as floor, line(dsn) as direct:
        for ask in (lambda: direct.rows(wait, {}), lambda: direct.rows_of_each([(wait, {})] * 2)):
            async with floor.database.transaction():
                await floor.database.execute("SELECT pg_advisory_xact_lock(7)")
                asked = asyncio.create_task(ask())
                await floor.until_locked_out(direct.backend)
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
                following = asyncio.create_task(direct.rows(Statement(b"SELECT 'own'"), {}))
            assert await following == [("own",)]


async def test_an_error_in_the_middle_of_several_questions(dsn):
    """It is raised, and the connection is as good as before."""
    async with line(dsn) as direct:
        questions = [(Statement(text), {}) for text in (b"SELECT 1", b"SELECT 1 / 0", b"SELECT 2")]
        with pytest.raises(psycopg.errors.DivisionByZero):
            await direct.rows_of_each(questions)
        assert not direct.closed
        assert await direct.rows_of_each([questions[0], questions[2]]) == [[(1,)], [(2,)]]


async def test_a_lost_connection_is_an_error_for_who_waits_and_for_who_comes(dsn):
    """Nobody waits for ever for an answer that cannot come."""
    async with Proxy(dsn) as proxy, line(proxy.dsn) as direct:
        asked = asyncio.create_task(direct.rows(Statement(b"SELECT pg_sleep(60)"), {}))
        following = asyncio.create_task(direct.rows(Statement(b"SELECT 1"), {}))
        await asyncio.sleep(0)
        proxy.cut()
        for question in (asked, following):
            with pytest.raises(psycopg.OperationalError):
                await question
        assert direct.closed


async def test_a_connection_lost_while_a_statement_is_being_sent_is_one_error(dsn):
    """It is raised where the statement was sent, and nothing else is left behind for the loop to complain of."""
    left_behind = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: left_behind.append(context))
    async with Proxy(dsn) as proxy, line(proxy.dsn) as direct:
        proxy.stall()
        sending = asyncio.create_task(
            direct.rows(Statement(b"SELECT length(%(value)s::text)"), {"value": "x" * 30_000_000})
        )
        while direct._writable is None:  # noqa: ASYNC110 (the driver says nothing)
            await asyncio.sleep(0)
        proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            await sending
        del sending
        gc.collect()
        await asyncio.sleep(0)
    assert left_behind == []


PREPARED = Statement(b"SELECT name FROM pg_prepared_statements WHERE statement LIKE %(like)s")


@pytest.mark.not_in("unprepared", "pgbouncer", reason="nothing is prepared")
async def test_a_statement_is_prepared_anew_as_it_is_used_more(dsn, monkeypatch):
    """After 2, 52 and 208 uses, and after a minute if it is used at all; the one before is given up each time."""
    times = [0.0]
    counted = Statement(b"SELECT 'counted' || %(number)s::text")
    async with line(dsn) as direct:
        monkeypatch.setattr(direct, "_loop", _Timed(direct._loop, times))

        async def names() -> list[str]:
            return [name for (name,) in await direct.rows(PREPARED, {"like": "SELECT 'counted'%"})]

        async def use(times_used: int) -> None:
            for number in range(times_used):
                assert await direct.rows(counted, {"number": str(number)}) == [(f"counted{number}",)]

        await use(1)
        assert await names() == []
        await use(1)
        (first,) = await names()
        await use(49)
        assert await names() == [first]
        await use(1)
        (second,) = await names()
        assert second != first
        await use(155)
        assert await names() == [second]
        await use(1)
        (third,) = await names()
        assert third != second
        times[0] = 61.0
        await use(49)
        assert await names() == [third]
        await use(1)
        assert await names() != [third]


class _Timed:
    """A loop with a clock that the test moves."""

    def __init__(self, loop, times):
        self._loop = loop
        self._times = times

    def time(self):
        return self._times[0]

    def __getattr__(self, name):
        return getattr(self._loop, name)
