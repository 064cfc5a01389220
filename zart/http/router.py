"""The table of routes as a Litestar application."""

from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec
from litestar import Litestar, Request, Response
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler

from zart import Client, UsageError
from zart.http.bodies import Gone, decode_body, decode_query, read_body
from zart.http.call import Call
from zart.http.gate import Gate
from zart.http.paths import decode_segment
from zart.http.problems import (
    FORBIDDEN,
    INTERNAL,
    MALFORMED,
    MEDIA_TYPE,
    NO_METHOD,
    NO_ROUTE,
    UNAUTHORIZED,
    Kind,
    Refused,
    no_route,
)
from zart.http.routing import Route, allow, as_reply
from zart.http.service import Service
from zart.http.visit import HUNG_UP, Visit

VISIT: Final = "zart.visit"
"""Where a request's `Visit` is in its ASGI scope."""
SCOPE: Final = "zart_scope"
"""Where a handler says which scope its route needs."""
_KINDS: Final[Mapping[int, Kind]] = {
    400: MALFORMED,
    401: UNAUTHORIZED,
    403: FORBIDDEN,
    404: NO_ROUTE,
    405: NO_METHOD,
}
_NOTHING: Final = b""

_encode: Final = msgspec.json.Encoder().encode


def build_router(routes: tuple[Route, ...], service: Service, gate: Gate) -> Litestar:
    """An application that knows the routes, asks the gate before each, and answers every error with a problem."""

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        visit = _visit(connection)
        if visit.caller is None:
            raise Refused(FORBIDDEN, "this request did not pass the gate")
        gate.check_scope(visit.caller, handler.opt.get(SCOPE))

    return Litestar(
        route_handlers=[_handler(route, service) for route in routes],
        guards=[guard],
        exception_handlers={Exception: _on_error},
        openapi_config=None,
        logging_config=None,
        debug=False,
    )


def _handler(route: Route, service: Service) -> HTTPRouteHandler:
    """What Litestar calls for a route."""

    async def handle(request: Request[Any, Any, Any]) -> Response[bytes]:
        visit = _visit(request)
        assert visit.caller is not None  # noqa: S101 (the guard has seen it)
        parts = {name: decode_segment(value) for name, value in request.path_params.items()}
        query = (
            {} if route.query is None else {"query": decode_query(request.scope["query_string"], route.query)}
        )
        body = await _read(route, request, visit, service)
        client = None
        if route.client:
            client = await _open_client(service)
            if visit.caller.name is not None:
                client = client.as_author(visit.caller.name)
        call = Call(
            service,
            client,
            visit.caller,
            cast("Any", request.receive),
            path=visit.path,
            idempotency_key=_idempotency_key(visit),
        )
        answer = await route.answer(call, **parts, **query, **body)
        reply = as_reply(answer)
        content = reply.content.encode() if isinstance(reply.content, str) else _encode(reply.content)
        return Response(
            content,
            status_code=reply.status or route.status,
            headers=reply.headers,
            media_type=route.media_type,
        )

    made = HTTPRouteHandler(
        _litestar_path(route, service),
        http_method=route.method,
        name=route.name,
        status_code=route.status,
        opt={SCOPE: route.scope},
    )
    return made(handle)


async def _read(
    route: Route, request: Request[Any, Any, Any], visit: Visit, service: Service
) -> dict[str, Any]:
    """The body of a request, if the route takes one. A body that may be left out is then as if it said nothing."""
    if route.body is None:
        return {}
    headers = {name.lower(): value for name, value in visit.headers}
    data = await read_body(cast("Any", request.receive), headers, service.options)
    if data == _NOTHING:
        if route.body.required:
            raise Refused(MALFORMED, "the request has no body, and needs one: JSON")
        return {"body": None if route.body.kind is Any else route.body.kind()}
    return {"body": decode_body(data, route.body.kind)}


async def _open_client(service: Service) -> Client:
    """The client. What is wrong with how it was set up is no fault of whoever asks."""
    try:
        return await service.client()
    except UsageError as error:
        raise RuntimeError(str(error)) from error


def _on_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    if isinstance(error, Gone):
        return Response(b"", status_code=HUNG_UP, media_type=MEDIA_TYPE)
    status, content, headers = _visit(request).problem(_ours(error))
    return Response(content, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def _ours(error: Exception) -> Exception:
    """An error of Litestar's as one of ours."""
    match error:
        case NotFoundException():
            return no_route()
        case MethodNotAllowedException(headers=headers):
            allowed = allow((headers or {}).get("allow", "").split(", "))
            return Refused(NO_METHOD, f"this path takes {allowed}", headers={"Allow": allowed})
        case HTTPException(status_code=status) if status < INTERNAL.status:
            return Refused(_KINDS.get(status, MALFORMED), error.detail)
        case _:
            return error


def _visit(connection: ASGIConnection[Any, Any, Any, Any]) -> Visit:
    return cast("Visit", cast("Any", connection.scope)[VISIT])


def _idempotency_key(visit: Visit) -> str | None:
    given = [value for name, value in visit.headers if name.lower() == b"idempotency-key"]
    if len(given) > 1:
        raise Refused(MALFORMED, "the request has more than one Idempotency-Key")
    try:
        return given[0].decode() if given else None
    except UnicodeDecodeError:
        raise Refused(MALFORMED, "the Idempotency-Key is no UTF-8") from None


def _litestar_path(route: Route, service: Service) -> str:
    """The path of a route as Litestar writes it: each part in braces has a type."""
    below = "".join(
        f"/{{{part[1:-1]}:str}}" if part.startswith("{") else f"/{part}" for part in route.path.split("/")[1:]
    )
    return f"{service.prefix}{below}" if route.prefixed else below
