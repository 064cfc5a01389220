"""The listener: it hears, comes back, and is not missed where it cannot be had."""

import asyncio
import contextlib
import logging

import psycopg
import pytest

from tests.support.floor import Floor
from tests.support.proxy import Proxy
from zart._postgres.listener import Listener, done_channel, work_channel


@pytest.fixture
def dsn(direct_dsn: str) -> str:
    """Nobody hears anything through a pooler."""
    return direct_dsn


class Ears:
    """A running listener and what it heard."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.caught_up: asyncio.Queue[None] = asyncio.Queue()
        self.connections: list[psycopg.AsyncConnection] = []
        self.listener = Listener(
            self._connect,
            [work_channel("public"), done_channel("public")],
            lambda channel, payload: self.heard.put_nowait((channel, payload)),
            lambda: self.caught_up.put_nowait(None),
        )

    async def _connect(self) -> psycopg.AsyncConnection:
        connection = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
        self.connections.append(connection)
        return connection


@contextlib.asynccontextmanager
async def listening(dsn: str):
    ears = Ears(dsn)
    running = asyncio.create_task(ears.listener.run())
    try:
        async with asyncio.timeout(30):
            yield ears
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        assert not ears.listener.listening
        assert all(connection.closed for connection in ears.connections)


async def test_it_hears_its_channels_and_no_others(dsn):
    """With their payloads; and it says once that it has begun."""
    async with Floor(dsn) as floor, listening(dsn) as ears:
        await ears.caught_up.get()
        assert ears.listener.listening
        for channel, payload in (
            ("elsewhere", "x"),
            (done_channel("public"), "e1"),
            (work_channel("public"), ""),
        ):
            await floor.database.execute("SELECT pg_notify(%s, %s)", (channel, payload))
        assert await ears.heard.get() == (done_channel("public"), "e1")
        assert await ears.heard.get() == (work_channel("public"), "")
        assert ears.caught_up.empty()


async def test_the_announcement_of_work_arrives_on_this_channel(dsn):
    """The database and the library mean the same name."""
    async with Floor(dsn) as floor, listening(dsn) as ears:
        await ears.caught_up.get()
        await (await floor.hand()).claimer.set_idle(True)
        await floor.start("e")
        assert await ears.heard.get() == (work_channel("public"), "")


async def test_after_a_lost_connection_it_comes_back_and_says_so(dsn, caplog):
    """What was sent in between is gone, so it asks for a look; the log has a line for each turn."""
    caplog.set_level(logging.INFO, "zart.listener")
    async with Floor(dsn) as floor, listening(dsn) as ears:
        await ears.caught_up.get()
        backend = ears.connections[0].info.backend_pid
        await floor.database.execute("SELECT pg_terminate_backend(%s)", (backend,))
        await ears.caught_up.get()
        assert ears.listener.listening
        await floor.database.execute("SELECT pg_notify(%s, 'again')", (done_channel("public"),))
        assert await ears.heard.get() == (done_channel("public"), "again")
    assert caplog.text.count("polls until it is back") == 1
    assert caplog.text.count("listens for notifications again") == 1


async def test_an_address_that_does_not_answer_is_tried_on(dsn, caplog):
    """One line, however long it takes; then it listens."""
    async with Proxy(dsn) as proxy:
        proxy.refusing = True
        async with listening(proxy.dsn) as ears:
            while not caplog.records:  # noqa: ASYNC110 (a log record sets no event)
                await asyncio.sleep(0.005)
            assert not ears.listener.listening
            proxy.refusing = False
            await ears.caught_up.get()
        assert caplog.text.count("polls instead") == 1


@pytest.mark.parametrize("schema", ["public", 'we"ird', "Ünïcode"])
async def test_channels_are_named_by_the_schema(dsn, schema):
    """As the database names them, whatever is in the name; short enough for an identifier."""
    async with Floor(dsn) as floor:
        for prefix, channel in ("zart_work_", work_channel(schema)), ("zart_done_", done_channel(schema)):
            assert channel == await floor.value("SELECT %s || substr(md5(%s), 1, 12)", prefix, schema)
            assert len(channel) < 63
