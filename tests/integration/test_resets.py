"""Connections that the other end resets after some last words, on the event loop that `zart worker` runs on.

A server that is shut down at once says so and closes, with requests unread: the client sees what was said, and a reset
behind it. What was said is no answer, and the reset must not be missed.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from zart._postgres.direct import Direct, Statement
from zart._postgres.listener import Listener

uvloop = pytest.importorskip("uvloop")

LOOPS = pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


HELLO = (
    message(b"R", struct.pack("!i", 0))
    + message(b"S", b"client_encoding\0UTF8\0")
    + message(b"S", b"server_version\x0018.0\0")
    + message(b"K", struct.pack("!ii", 7, 7))
    + message(b"Z", b"I")
)
LAST_WORDS = message(b"N", b"SWARNING\0VWARNING\0C57P02\0Mterminating connection\0\0")


@contextmanager
def server() -> Iterator[str]:
    """Lets one client in and leaves its first request unread: it says its last words and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            line, _ = listening.accept()
            with line:
                line.recv(10_000)
                line.sendall(HELLO)
                line.recv(1, socket.MSG_PEEK)
                line.sendall(LAST_WORDS)

        thread = threading.Thread(target=serve)
        thread.start()
        port = listening.getsockname()[1]
        yield f"host=127.0.0.1 port={port} sslmode=disable gssencmode=disable dbname=x user=x"
        thread.join()


def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], main: Awaitable[Any]) -> Any:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(main)  # type: ignore[arg-type]


@LOOPS
def test_a_statement_in_flight_fails(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Whoever waits for an answer is told at once that none will come."""

    async def ask(dsn: str) -> None:
        connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        direct = Direct(connection)
        try:
            async with asyncio.timeout(5):
                with pytest.raises(psycopg.OperationalError):
                    await direct.rows(Statement(b"SELECT 1"), {})
            assert direct.closed
        finally:
            direct.close()
            await connection.close()

    with server() as dsn:
        run(loop_factory, ask(dsn))


@LOOPS
def test_a_listener_notices(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Whoever listens for notifications knows at once that none arrive any more."""

    async def listen(dsn: str) -> None:
        connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        heard: list[tuple[str, str]] = []
        listener = Listener(lambda: asyncio.sleep(0, connection), [], lambda *what: heard.append(what))
        listening = asyncio.create_task(listener._hear(connection))
        await asyncio.sleep(0)
        connection.pgconn.send_query(b"SELECT 1")  # what the server does not read
        connection.pgconn.flush()
        try:
            async with asyncio.timeout(5):
                with pytest.raises(psycopg.OperationalError):
                    await listening
        finally:
            listening.cancel()
            await connection.close()

    with server() as dsn:
        run(loop_factory, listen(dsn))
