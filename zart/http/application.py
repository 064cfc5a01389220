"""The ASGI application: what stands around the router, and its life.

Everything that a request meets before its route is here in order: its id, the gate, its path. The router then finds
the route, asks the gate for its scope, and answers. Whatever goes wrong, the answer is a problem with the request's id.

Where a host runs the application's lifespan (a server does), the client is opened before the first request and closed
after the last. A host that mounts it often does not: then the first request opens the client, and `async with app:`
in the host's own lifespan, or `await app.aclose()`, closes it.
"""

import logging
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Final, Self

from litestar import Litestar

from zart.http.bodies import Receive
from zart.http.gate import Gate
from zart.http.paths import own_path
from zart.http.problems import no_route
from zart.http.router import VISIT, build_router
from zart.http.routing import Route, allow, methods_at
from zart.http.service import Service
from zart.http.visit import Send, Visit

_log = logging.getLogger("zart.http")

Scope = MutableMapping[str, Any]

_PROBES: Final = ("/healthz", "/readyz")
_STANDARD: Final = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "query_string",
    "client",
    "server",
    "extensions",
)
"""What the router sees of a host's scope: a host's own router may have left its traces there."""


class HttpApi:
    """The HTTP API of one client, an ASGI application. Made by `zart.http.create_app`."""

    def __init__(self, routes: tuple[Route, ...], service: Service, gate: Gate) -> None:
        self._routes = routes
        self._service = service
        self._gate = gate
        self.router: Litestar = build_router(routes, service, gate)
        """The Litestar application behind the gate."""

    @property
    def has_tokens(self) -> bool:
        """Whether callers need a token; without, only this machine is answered."""
        return self._gate.has_tokens

    @property
    def document(self) -> dict[str, Any]:
        """What openapi.json says."""
        return self._service.document

    def stop_waiting(self) -> None:
        """Answer every request that waits for a result with how its execution stands: the server is about to stop."""
        self._service.stopping.set()

    async def aclose(self) -> None:
        """End the waits, and close the client if this application opened it. A later request opens it again."""
        await self._service.close()

    async def __aenter__(self) -> Self:
        await self._service.client()
        return self

    async def __aexit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        await self.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._answer(scope, receive, send)
            case "lifespan":
                await self._live(receive, send)
            case "websocket":
                await receive()
                await send(
                    {"type": "websocket.close", "code": 1008, "reason": "there are no WebSockets here"}
                )
            case other:
                raise ValueError(f"this application knows no connections of type {other!r}")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = Visit(scope, send)
        try:
            await self._pass_on(scope, receive, visit)
        except Exception as error:
            if visit.status is not None:
                raise  # half an answer is out: only the server can break it off
            await visit.refuse(error)
        finally:
            visit.note()

    async def _pass_on(self, scope: Scope, receive: Receive, visit: Visit) -> None:
        path = own_path(scope)
        client = scope.get("client")
        visit.caller = self._gate.admit(visit.headers, client[0] if client else None, probe=path in _PROBES)
        if "//" in path:
            raise no_route()
        if visit.method == "OPTIONS":
            await self._tell_methods(path, visit)
            return
        inner: dict[str, Any] = {key: scope[key] for key in _STANDARD if key in scope}
        inner |= {
            "path": path,
            "raw_path": path.encode("ascii"),
            "root_path": "",
            "headers": visit.headers,
            VISIT: visit,
        }
        if visit.method == "HEAD":
            inner["method"] = "GET"
        await self.router(inner, receive, visit.send)  # type: ignore[arg-type]

    async def _tell_methods(self, path: str, visit: Visit) -> None:
        """Say which methods a path takes, to whoever may call at all. It lets no other site in: it is no preflight."""
        methods = methods_at(self._routes, self._service.prefix, path)
        if not methods:
            raise no_route()
        await visit.answer(204, b"", None, {"Allow": allow(methods)})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._service.client()
        except Exception as error:  # noqa: BLE001 (the server hears of it)
            _log.error("the HTTP API cannot start: %s", error)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._service.close()
        await send({"type": "lifespan.shutdown.complete"})
