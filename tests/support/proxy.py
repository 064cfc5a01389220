"""A proxy between a client and PostgreSQL, for faults on the way that no server would commit on request.

It knows one thing of the protocol: a client's request ends with Sync (or is a simple query), and the server
has answered it when it is ready for the next. So it can lose the answer of a statement that was committed, or
the request before it arrives, and these are the two that a client cannot tell apart.

    async with Proxy(dsn) as proxy:
        connection = await psycopg.AsyncConnection.connect(proxy.dsn)
        proxy.lose_answers(1)
"""

import asyncio
from types import TracebackType
from typing import Self

from psycopg import conninfo

_SYNC = b"S\x00\x00\x00\x04"
_READY = b"Z\x00\x00\x00\x05"


class Proxy:
    """Listens on a free port of 127.0.0.1 and passes everything on, until it is told otherwise."""

    def __init__(self, dsn: str) -> None:
        self._target = conninfo.conninfo_to_dict(dsn)
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._changed = asyncio.Condition()
        self.refusing = False
        """Whether new connections are closed at once."""
        self._deaf = False
        self.requests_to_spare = 0
        """How many requests pass before any is lost."""
        self.answers_to_lose = 0
        self.requests_to_lose = 0
        self.lost = 0
        """How many answers and requests have been lost."""
        self.opened = 0
        """How many connections were passed on."""

    @property
    def dsn(self) -> str:
        """The address of the same database through this proxy."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        parameters = {
            key: value for key, value in self._target.items() if key not in ("host", "port", "hostaddr")
        }
        return conninfo.make_conninfo(
            "", **parameters, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable"
        )

    def lose_answers(self, count: int, *, after: int = 0) -> None:
        """The next requests reach the server and are answered; their connections break before that. So many others
        pass before them."""
        self.answers_to_lose, self.requests_to_spare = count, after

    def lose_requests(self, count: int) -> None:
        """The connections of the next requests break before the server has seen them."""
        self.requests_to_lose = count

    def cut(self) -> None:
        """Breaks every connection."""
        for link in list(self._links):
            link.break_off()

    def stall(self) -> None:
        """Passes nothing on, in either direction, until `resume`; connections stay open."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def go_deaf(self) -> None:
        """Connections are accepted and stay open, and whatever is said on them is never heard, until `hear`."""
        self._deaf = True

    def hear(self) -> None:
        """Connections that were not heard break; new ones are passed on again."""
        self._deaf = False
        for link in list(self._links):
            if link.unheard:
                link.break_off()

    async def wait_lost(self, count: int) -> None:
        """Until so many answers and requests have been lost."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.lost >= count)

    async def wait_opened(self, count: int) -> None:
        """Until so many connections have been passed on."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.opened >= count)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.resume()
        self.cut()
        while self._links:
            await asyncio.gather(*(link.ended.wait() for link in self._links))
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        host, port = str(self._target.get("host", "localhost")), int(self._target.get("port") or 5432)
        try:
            if host.startswith("/"):
                up = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                up = await asyncio.open_connection(host, port)
        except OSError:  # nobody is there, which the client would see without a proxy, too
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), up)
        self._links.add(link)
        await self._count(opened=1)
        try:
            await link.run()
        finally:
            self._links.discard(link)
            link.ended.set()

    async def _count(self, *, lost: int = 0, opened: int = 0) -> None:
        async with self._changed:
            self.lost += lost
            self.opened += opened
            self._changed.notify_all()


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection that is passed on."""

    def __init__(self, proxy: Proxy, client: _Stream, server: _Stream) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self._started = False  # the server has let the client in
        self._swallowing = False
        self.unheard = False
        """Whether something was said that was not passed on."""
        self.ended = asyncio.Event()

    def break_off(self) -> None:
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def run(self) -> None:
        directions = [asyncio.create_task(self._to_server()), asyncio.create_task(self._to_client())]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.break_off()
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    async def _to_server(self) -> None:
        while data := await self._client[0].read(1 << 16):
            await self._proxy._flowing.wait()
            if self._proxy._deaf or self.unheard:
                self.unheard = True
                continue
            if self._started and (data.endswith(_SYNC) or data[:1] == b"Q"):
                if self._proxy.requests_to_spare:
                    self._proxy.requests_to_spare -= 1
                elif self._proxy.requests_to_lose:
                    self._proxy.requests_to_lose -= 1
                    await self._proxy._count(lost=1)
                    return
                elif self._proxy.answers_to_lose:
                    self._proxy.answers_to_lose -= 1
                    self._swallowing = True
            self._server[1].write(data)
            await self._server[1].drain()

    async def _to_client(self) -> None:
        while data := await self._server[0].read(1 << 16):
            await self._proxy._flowing.wait()
            ready = data[-6:-1] == _READY
            if self._swallowing:
                if ready:
                    await self._proxy._count(lost=1)
                    return
                continue
            self._started = self._started or ready
            self._client[1].write(data)
            await self._client[1].drain()
