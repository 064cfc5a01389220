"""The OpenAPI 3.1 document, made from the table of routes and the Structs that they take and give.

msgspec describes each Struct as it reads and writes it, so the document says exactly what is accepted. The probes and
the metrics stand outside of the prefix and are not in it: they are no part of the API.
"""

from http import HTTPStatus
from typing import Any, Final

import msgspec

from zart.http.problems import MEDIA_TYPE, Problem
from zart.http.routing import Route

_REF: Final = "#/components/schemas/{name}"
_EVERYWHERE: Final = (400, 401, 403, 421, 429, 500, 503)
"""What the gate, the reading of a request, and a database that is away may answer to any of them."""
_WITH_A_BODY: Final = (408, 413, 415)
_NAMED: Final = {
    "execution_id": ("The execution's id, percent-encoded: `/` is `%2F`.", "order-4711"),
    "event": ("The event's name, percent-encoded.", "manager-approval"),
    "rule": ("The pause's id.", "p-17"),
}
_ABOUT: Final = """\
Durable executions: start them, look at them, send them events, steer them.

Every answer that is not a success is a problem by RFC 9457. Ids and names in paths are percent-encoded. With tokens \
every request carries one, `Authorization: Bearer ...`; each operation names the scope that it needs."""


def describe(routes: tuple[Route, ...], prefix: str, version: str) -> dict[str, Any]:
    """The document of the routes below `prefix`."""
    described = [route for route in routes if route.prefixed]
    kinds = {Problem} | {route.content for route in described if route.content is not None}
    kinds |= {route.body.kind for route in described if route.body is not None and route.body.kind is not Any}
    _, schemas = msgspec.json.schema_components(
        sorted(kinds, key=lambda kind: kind.__name__), ref_template=_REF
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in described:
        paths.setdefault(prefix + route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Zart",
            "version": version,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "security": [{"token": [route.scope]}],
        "responses": _responses(route),
    }
    if route.description:
        operation["description"] = route.description
    if parameters := _parameters(route):
        operation["parameters"] = parameters
    if route.body is not None:
        media: dict[str, Any] = {"schema": _schema(route.body.kind)}
        if route.body.example is not None:
            media["example"] = route.body.example
        operation["requestBody"] = {
            "required": route.body.required,
            "content": {"application/json": media},
        }
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    for part in route.parts:
        about, example = _NAMED[part]
        parameters.append(
            {
                "name": part,
                "in": "path",
                "required": True,
                "description": about,
                "schema": {"type": "string", "minLength": 1, "examples": [example]},
            }
        )
    if route.query is not None:
        _, found = msgspec.json.schema_components([route.query], ref_template=_REF)
        described = found[route.query.__name__]
        for name, schema in described["properties"].items():
            parameter: dict[str, Any] = {"name": name, "in": "query", "required": False}
            if about := schema.pop("description", None):
                parameter["description"] = about
            parameters.append(parameter | {"schema": _without_null(schema)})
    if route.dedup:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "A key of your own for this event.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 200, "examples": ["mail-7781"]},
            }
        )
    return parameters


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query holds text: what it leaves out is null, and cannot be said otherwise."""
    arms = [arm for arm in schema.pop("anyOf", []) if arm != {"type": "null"}]
    if schema.get("default", ...) is None:
        del schema["default"]
    return schema | arms[0] if len(arms) == 1 else schema | ({"anyOf": arms} if arms else {})


def _responses(route: Route) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    answers = {route.status: HTTPStatus(route.status).phrase + ".", **route.other}
    schema = {} if route.content is None else _schema(route.content)
    for status, about in answers.items():
        responses[str(status)] = {
            "description": about,
            "content": {route.media_type: {"schema": schema}},
        }
    with_body = _WITH_A_BODY if route.body is not None else ()
    for status in sorted({*_EVERYWHERE, *with_body, *route.problems}):
        responses[str(status)] = {
            "description": f"{HTTPStatus(status).phrase}, by RFC 9457.",
            "content": {MEDIA_TYPE: {"schema": _schema(Problem)}},
        }
    return responses


def _schema(kind: Any) -> dict[str, Any]:
    return {} if kind is Any else {"$ref": _REF.format(name=kind.__name__)}
