"""Statements sent straight to libpq: for those that are sent all the time, and that somebody waits for.

psycopg's cursor does for every statement what only the first one needs: it looks the text up, finds a dumper for each
parameter, registers the socket with the event loop and takes it out again. That takes longer than a small commit. Here
a statement is prepared when it comes a second time, its lists are packed by their types in its text (`arrays.py`), and
the socket stays registered. Everything used is psycopg's documented `pq` interface; errors are psycopg's own.

A plan lives as long as its prepared statement, unless the server's vacuum or a migration ends it. One that was made
while the tables were small scans them whole, and would go on like that through a million rows. So a statement is
prepared anew when it was used four times as often as when it was planned, and once a minute while it is used.
"""

import asyncio
import datetime as dt
import itertools
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, errors, pq
from psycopg.adapt import Transformer

from zart._postgres.arrays import Array, bools, byteas, int4s, int8s, texts, times, uuids
from zart._postgres.queries import load
from zart._postgres.readiness import has_more

_log = logging.getLogger("zart.postgres")

Parameters = Mapping[str, Any]
"""By name: text, numbers, times, UUIDs, bytes, and lists of these where the statement says `%(name)s::type[]`."""
Row = tuple[Any, ...]

_PLACEHOLDER = re.compile(rb"%%|%\((\w+)\)s(?:::(\w+)\[\])?")
_BINARY = pq.Format.BINARY
_WORTH_A_PLAN: Final = 50
"""Uses of a plan, before another one is made."""
_PLANNED_FOR: Final = 60.0
"""Seconds."""
_PACKERS: dict[str, Callable[[Any], bytes]] = {
    "text": texts,
    "int": int4s,
    "bigint": int8s,
    "bool": bools,
    "bytea": byteas,
    "uuid": uuids,
    "timestamptz": times,
}


class Statement:
    """A named statement with the server's own placeholders.

    The client would otherwise translate the long ones anew each time, which takes longer than to run them.
    """

    def __init__(self, statement: bytes) -> None:
        names: list[str] = []
        self._packers: dict[str, Callable[[Any], bytes]] = {}

        def numbered(found: re.Match[bytes]) -> bytes:
            if found[1] is None:
                return b"%"
            name = found[1].decode()
            if name not in names:
                names.append(name)
                self._packers[name] = as_text
            number = b"$%d" % (names.index(name) + 1)
            if found[2] is None:
                return number
            self._packers[name] = _PACKERS.get(found[2].decode(), as_text)
            return number + b"::" + found[2] + b"[]"

        self.text: bytes = _PLACEHOLDER.sub(numbered, statement)
        self.parameters: tuple[str, ...] = tuple(names)

    def values(self, parameters: Parameters) -> list[bytes | None]:
        """Its parameters as they travel, in their order."""
        packed: list[bytes | None] = []
        for name, packer in self._packers.items():
            value = parameters[name]
            packed.append(value if value is None or isinstance(value, Array) else packer(value))
        return packed


class _Known:
    """A statement as one connection knows it."""

    __slots__ = ("name", "planned_at", "planned_uses", "uses")

    def __init__(self) -> None:
        self.name: bytes | None = None
        """Under which it is prepared; None while it is not."""
        self.uses = 0
        self.planned_uses = 0
        self.planned_at = 0.0

    def use(self, now: float) -> bool:
        """Count one more use; whether the statement is to be prepared before it."""
        self.uses += 1
        if self.name is None:
            return self.uses > 1
        return self.uses - self.planned_uses >= _WORTH_A_PLAN and (
            self.uses >= 4 * self.planned_uses or now - self.planned_at > _PLANNED_FOR
        )

    def prepared(self, name: bytes, now: float) -> None:
        self.name, self.planned_uses, self.planned_at = name, self.uses, now


@cache
def statements(file: str, schema: str) -> Mapping[str, Statement]:
    """The statements of `sql/<file>.sql` by name, for one schema."""
    return MappingProxyType({name: Statement(text) for name, text in load(file, schema).items()})


class Direct:
    """The statements of one connection, which belongs to nobody else. One at a time; `close` before the connection."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection
        self._libpq = connection.pgconn
        self._socket = connection.fileno()
        self._loop = asyncio.get_running_loop()
        self._known: dict[bytes, _Known] = {}
        self._numbers = itertools.count()
        self._transformer = Transformer(connection)
        self._results: list[pq.abc.PGresult] = []
        self._answer: asyncio.Future[list[pq.abc.PGresult]] | None = None
        self._vacant: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._in_pipeline = False
        self._reading = True
        self._loop.add_reader(self._socket, self._readable)

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more: it was closed, or has lost its connection."""
        return not self._reading or self._connection.closed

    @property
    def backend(self) -> int:
        """The server's process at the other end."""
        return self._libpq.backend_pid

    def close(self) -> None:
        """Let go of the socket; whoever waits for an answer gets an error."""
        self._let_go(psycopg.OperationalError("the connection was closed"))

    async def rows(
        self,
        statement: Statement,
        parameters: Parameters,
        *,
        on_sent: Callable[[], None] | None = None,
    ) -> list[Row]:
        """Run a statement; its rows. Raises `psycopg.Error`.

        `on_sent` is called when all of it is on its way, and its answer is not here.
        """
        values = statement.values(parameters)
        await self._vacated()
        self._send(statement.text, await self._prepared(statement.text, values), values)
        return self._read((await self._answered(on_sent))[-1])

    async def rows_of_each(self, questions: Sequence[tuple[Statement, Parameters]]) -> list[list[Row]]:
        """The rows of several statements that only read, in one round trip and one transaction."""
        await self._vacated()
        packed = [(statement.text, statement.values(parameters)) for statement, parameters in questions]
        named = [(text, await self._prepared(text, values), values) for text, values in packed]
        self._libpq.enter_pipeline_mode()
        self._in_pipeline = True
        for question in named:
            self._send(*question)
        self._libpq.pipeline_sync()
        return [self._read(result) for result in await self._answered()]

    # ------------------------------------------------------------ one after the other

    async def _vacated(self) -> None:
        """Somebody stopped waiting for the answer before, and it is still to come."""
        while self._answer is not None:
            self._vacant = self._loop.create_future()
            await self._vacant
        if self.closed:
            raise psycopg.OperationalError("the connection is lost")

    async def _prepared(self, text: bytes, values: Sequence[bytes | None]) -> bytes | None:
        """The name under which a statement is prepared; None the first time, and where none is to be."""
        if self._connection.prepare_threshold is None:
            return None
        known = self._known.get(text)
        if known is None:
            known = self._known[text] = _Known()
        now = self._loop.time()
        if known.use(now):
            name, known.name = known.name, None
            if name is not None:
                self._libpq.send_query(b"DEALLOCATE " + name)
                await self._answered()
            name = b"zart_%d" % next(self._numbers)
            self._libpq.send_prepare(name, text, _types(values))
            await self._answered()
            known.prepared(name, now)
        return known.name

    def _send(self, text: bytes, name: bytes | None, values: list[bytes | None]) -> None:
        formats = [1 if isinstance(value, Array) else 0 for value in values]
        if name is None:
            self._libpq.send_query_params(text, values, _types(values), formats, _BINARY)
        else:
            self._libpq.send_query_prepared(name, values, formats, _BINARY)

    async def _answered(self, on_sent: Callable[[], None] | None = None) -> list[pq.abc.PGresult]:
        answer: asyncio.Future[list[pq.abc.PGresult]] = self._loop.create_future()
        self._answer = answer
        try:
            while self._libpq.flush():
                await self._room()
        except BaseException:
            self.close()  # half a statement was sent
            if answer.done() and not answer.cancelled():
                answer.exception()  # nobody waits for it: what was raised here says the same
            raise
        if on_sent is not None:
            on_sent()
        results: list[pq.abc.PGresult] = await answer
        for result in results:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(result, encoding="utf-8")
        return results

    def _read(self, result: pq.abc.PGresult) -> list[Row]:
        transformer = self._transformer
        transformer.set_pgresult(result)
        return transformer.load_rows(0, result.ntuples, tuple)

    # ------------------------------------------------------------ the socket

    async def _room(self) -> None:
        """A large statement does not fit into the socket's buffer at once."""
        self._writable = self._loop.create_future()
        if self._reading:
            self._loop.add_writer(self._socket, self._go_on)
            await self._writable

    def _go_on(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)
        if self._reading:
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            self._libpq.consume_input()
            self._take_results()
            while has_more(self._socket):
                self._libpq.consume_input()
                self._take_results()
        except psycopg.Error as error:
            self._let_go(error)
        except OSError as error:  # libpq has found out while sending, and has closed the socket
            self._let_go(psycopg.OperationalError(f"the connection is lost: {error}"))

    def _take_results(self) -> None:
        libpq = self._libpq
        while not libpq.is_busy():
            result = libpq.get_result()
            if result is None:
                if self._in_pipeline:
                    continue  # after each statement's result
                self._settle(None)
                return
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                libpq.exit_pipeline_mode()
                self._in_pipeline = False
                self._settle(None)
                return
            self._results.append(result)

    def _let_go(self, error: Exception) -> None:
        if self._reading:
            self._reading = False
            for remove in (self._loop.remove_reader, self._loop.remove_writer):
                with suppress(OSError):  # libpq may have closed the socket, when it could not send
                    remove(self._socket)
            self._go_on()
        self._settle(error)

    def _settle(self, error: Exception | None) -> None:
        answer, self._answer = self._answer, None
        results, self._results = self._results, []
        vacant, self._vacant = self._vacant, None
        if vacant is not None and not vacant.done():
            vacant.set_result(None)
        if answer is None or answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        elif not results:
            answer.set_exception(psycopg.OperationalError("the server has closed the connection"))
        else:
            answer.set_result(results)


def _types(values: Sequence[bytes | None]) -> list[int]:
    return [value.array_oid if isinstance(value, Array) else 0 for value in values]


def as_text(value: Any) -> bytes:
    """A single value as PostgreSQL reads it."""
    to_text = _TEXTS.get(value.__class__)
    if to_text is None:
        to_text = next((known for kind, known in _TEXTS.items() if isinstance(value, kind)), None)
        if to_text is None:
            raise TypeError(f"a parameter of type {type(value).__name__} cannot be sent")
    return to_text(value)


def _characters(value: str) -> bytes:
    data = value.encode()
    if b"\0" in data:
        raise psycopg.DataError("PostgreSQL text cannot contain NUL (0x00) bytes")
    return data


def _interval(value: dt.timedelta) -> bytes:
    return b"%d days %d seconds %d microseconds" % (value.days, value.seconds, value.microseconds)


_TEXTS: dict[type, Callable[[Any], bytes]] = {
    str: _characters,
    bool: lambda value: b"t" if value else b"f",
    int: lambda value: b"%d" % value,
    UUID: lambda value: value.hex.encode(),
    dt.datetime: lambda value: value.isoformat().encode(),
    bytes: lambda value: b"\\x" + value.hex().encode(),
    dt.timedelta: _interval,
}


class DirectLine:
    """A connection for such statements: opened when it is first needed, and again after it was lost."""

    def __init__(self, connect: Callable[[], Awaitable[AsyncConnection[Any]]]) -> None:
        self._connect = connect
        self._connection: AsyncConnection[Any] | None = None
        self._direct: Direct | None = None

    async def open(self) -> Direct:
        """What statements are sent with. Raises what `connect` raises."""
        if self._direct is None or self._direct.closed:
            await self.close()
            self._connection = await self._connect()
            self._direct = Direct(self._connection)
        return self._direct

    def hang_up(self) -> None:
        """Break the connection off: whoever waits for an answer gets an error, as if the server had done so."""
        if self._connection is None:
            return
        with suppress(OSError, psycopg.Error):
            line = socket.socket(fileno=self._connection.fileno())
            try:
                line.shutdown(socket.SHUT_RDWR)
            finally:
                line.detach()

    async def close(self) -> None:
        """Close the connection, if there is one."""
        direct, self._direct = self._direct, None
        if direct is not None:
            direct.close()
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            await connection.close()
        except (psycopg.Error, OSError) as error:
            _log.debug("a broken connection did not close cleanly: %s", error)
