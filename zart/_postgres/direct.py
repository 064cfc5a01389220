"""Statements sent straight to libpq: for the few that are sent all the time, one after the other.

psycopg's cursor does for every statement what only the first one needs: it looks the text up, finds a dumper for each
parameter, registers the socket with the event loop and takes it out again. That takes longer than a small commit. Here
a statement is prepared once per connection, its parameters are packed by the caller (`arrays.py`), and the socket stays
registered. Everything used is psycopg's documented `pq` interface; errors are psycopg's own.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import AsyncConnection, errors, pq
from psycopg.adapt import Transformer

from zart._postgres.arrays import Array

Parameter = Array | str | int | bool | None


class Direct:
    """The statements of one connection, which belongs to nobody else. One at a time; `close` before the connection."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection
        self._libpq = connection.pgconn
        self._socket = connection.fileno()
        self._loop = asyncio.get_running_loop()
        self._names: dict[bytes, bytes] = {}
        self._results: list[pq.abc.PGresult] = []
        self._answer: asyncio.Future[list[pq.abc.PGresult]] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._reading = True
        self._loop.add_reader(self._socket, self._readable)

    def close(self) -> None:
        """Let go of the socket."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._go_on()

    async def rows(
        self, statement: bytes, parameters: Sequence[Parameter], *, on_sent: Callable[[], None]
    ) -> list[tuple[Any, ...]]:
        """Run a statement with placeholders `$1`, `$2`, …; its rows. Raises `psycopg.Error`.

        `on_sent` is called when all of it is on its way, and its answer is not here.
        """
        if self._answer is not None:
            raise psycopg.OperationalError(
                "the statement before was abandoned, and its answer is still to come"
            )
        values = [_text(parameter) for parameter in parameters]
        types = [parameter.array_oid if isinstance(parameter, Array) else 0 for parameter in parameters]
        formats = [int(isinstance(parameter, Array)) for parameter in parameters]
        if self._connection.prepare_threshold is None:
            self._libpq.send_query_params(statement, values, types, formats)
        else:
            name = self._names.get(statement)
            if name is None:
                name = b"zart_%d" % len(self._names)
                self._libpq.send_prepare(name, statement, types)
                await self._answered()
                self._names[statement] = name
            self._libpq.send_query_prepared(name, values, formats)
        result = await self._answered(on_sent)
        transformer = Transformer(self._connection)
        transformer.set_pgresult(result)
        return transformer.load_rows(0, result.ntuples, tuple)

    async def _answered(self, on_sent: Callable[[], None] | None = None) -> pq.abc.PGresult:
        answer: asyncio.Future[list[pq.abc.PGresult]] = self._loop.create_future()
        self._answer = answer
        while self._libpq.flush():
            await self._room()
        if on_sent is not None:
            on_sent()
        results: list[pq.abc.PGresult] = await answer
        for result in results:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(result, encoding="utf-8")
        return results[-1]

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
            while not self._libpq.is_busy():
                result = self._libpq.get_result()
                if result is None:
                    self._settle(None)
                    return
                self._results.append(result)
        except psycopg.Error as error:
            self.close()
            self._settle(error)

    def _settle(self, error: Exception | None) -> None:
        answer, self._answer = self._answer, None
        results, self._results = self._results, []
        if answer is None or answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        elif not results:
            answer.set_exception(psycopg.OperationalError("the server has closed the connection"))
        else:
            answer.set_result(results)


def _text(parameter: Parameter) -> bytes | None:
    if parameter is None or isinstance(parameter, Array):
        return parameter
    if isinstance(parameter, bool):
        return b"t" if parameter else b"f"
    return str(parameter).encode()
