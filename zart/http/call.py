"""One request that has passed the gate, as a route sees it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from zart import Client
from zart.http.bodies import Gone, Receive, until_gone
from zart.http.gate import Caller
from zart.http.options import HttpOptions
from zart.http.problems import BUSY, Refused
from zart.http.service import Service

T = TypeVar("T")

_AGAIN: Final = {"Retry-After": "1"}


class Call:
    """What a route has at hand: a client that signs with the caller's name, and what the caller may see."""

    def __init__(
        self,
        service: Service,
        client: Client | None,
        caller: Caller,
        receive: Receive,
        *,
        path: str,
        idempotency_key: str | None,
    ) -> None:
        self.service = service
        self._client = client
        self.caller = caller
        self.path = path
        """As it was sent, without the query."""
        self.idempotency_key = idempotency_key
        """What the caller knows this request by."""
        self._receive = receive

    @property
    def client(self) -> Client:
        """Open, and under the caller's name."""
        if self._client is None:
            raise RuntimeError("this route was entered with client=False, and asks for the client")
        return self._client

    @property
    def options(self) -> HttpOptions:
        return self.service.options

    @property
    def payloads(self) -> bool:
        """Whether the caller may see people's data."""
        return "payloads" in self.caller.scopes

    async def wait(self, waiting: Coroutine[Any, Any, T]) -> T | None:
        """What `waiting` gives; None when the service stops first. Raises Gone when the caller hangs up: the wait
        ends with it. Raises Refused when too many wait already.
        """
        service = self.service
        if service.waiting >= self.options.max_waiting:
            waiting.close()
            told = f"{service.waiting} requests wait for results already"
            raise Refused(BUSY, told, headers=_AGAIN)
        service.waiting += 1
        tasks: list[asyncio.Task[Any]] = []
        try:
            awaited = asyncio.create_task(waiting, name="zart http wait")
            gone = asyncio.create_task(until_gone(self._receive), name="zart http caller")
            stopping = asyncio.create_task(service.stopping.wait(), name="zart http stop")
            tasks += [awaited, gone, stopping]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if awaited.done():
                return awaited.result()
            if gone.done():
                gone.result()
                raise Gone
            return None
        finally:
            service.waiting -= 1
            for task in tasks:
                task.cancel()
            # Each has ended before this does: nothing of a request outlives it.
            await asyncio.gather(*tasks, return_exceptions=True)
