"""What all requests of one application share: the client, opened when it is first needed, and what is set."""

import asyncio
import logging
from typing import Any

from zart import Client, UsageError
from zart.http.options import HttpOptions

_log = logging.getLogger("zart.http")


class Service:
    """The client behind an application, and how the application goes about.

    A client that is not open is opened by the application's lifespan, or by the first request where a host does not
    pass the lifespan on, and closed by whoever of the two ends it. One that is open belongs to whoever opened it.
    """

    def __init__(
        self, target: str | Client | None, options: HttpOptions, prefix: str, document: dict[str, Any]
    ) -> None:
        self.options = options
        self.prefix = prefix
        self.document = document
        """What openapi.json says."""
        self.stopping: asyncio.Event = asyncio.Event()
        """Set when waits for results end early, since the service stops."""
        self.waiting = 0
        """Requests that wait for results."""
        self._client = target if isinstance(target, Client) else Client(target)
        self._opened = False
        self._opening = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def address(self) -> str:
        """Where the database is, passwords included."""
        return self._client.address

    @property
    def schema(self) -> str:
        return self._client.schema

    async def client(self) -> Client:
        """The open client. Raises what opening it raises; then the next request tries again."""
        loop = asyncio.get_running_loop()
        if self._client.is_open:
            if self._opened and self._loop is not loop:
                raise UsageError(
                    "this application was used in another event loop before, and its client belongs to that one: "
                    "make an application for each loop, or pass its lifespan on"
                )
            return self._client
        async with self._opening:
            if not self._client.is_open:
                await self._client.__aenter__()
                self._opened, self._loop = True, loop
        return self._client

    async def close(self) -> None:
        """End the waits, and close the client if this application opened it."""
        self.stopping.set()
        if self._opened:
            self._opened = False
            await self._client.__aexit__(None, None, None)
        self.stopping = asyncio.Event()
