"""One gate for every route: walked without a token, with a wrong one, and with each scope.

The walk goes over the routes that the application really has, so that a new one is walked too, and fails here until
the table says who may use it.
"""

import logging
import re

import pytest
from litestar import get

from tests.support.calling import TOKENS, bearer, calling, token_file
from zart.http import HttpOptions, create_app
from zart.http.router import build_router

NEEDS = {
    "POST /api/v1/events/{execution_id}/{event}": "write",
    "POST /api/v1/executions": "write",
    "GET /api/v1/executions": "read",
    "GET /api/v1/executions/{execution_id}": "read",
    "GET /api/v1/executions/{execution_id}/history": "read",
    "GET /api/v1/executions/{execution_id}/runs": "read",
    "GET /api/v1/executions/{execution_id}/result": "read",
    "POST /api/v1/executions/{execution_id}/cancel": "write",
    "POST /api/v1/executions/{execution_id}/resume": "write",
    "POST /api/v1/executions/{execution_id}/retry-step": "write",
    "POST /api/v1/executions/{execution_id}/restart": "write",
    "POST /api/v1/executions/{execution_id}/rerun": "write",
    "DELETE /api/v1/executions/{execution_id}": "write",
    "GET /api/v1/pauses": "read",
    "POST /api/v1/pauses": "write",
    "DELETE /api/v1/pauses/{rule}": "write",
    "GET /api/v1/stats": "read",
    "GET /api/v1/openapi.json": "read",
    "GET /healthz": "read",
    "GET /readyz": "read",
    "GET /metrics": "read",
}
"""The one scope that each route needs. `payloads` opens none: it only shows more."""

BODIES = {
    "POST /api/v1/executions": {"name": "f"},
    "POST /api/v1/executions/{execution_id}/retry-step": {"key": "charge"},
    "POST /api/v1/executions/{execution_id}/rerun": {"steps": ["charge"]},
    "POST /api/v1/pauses": {"name": "f"},
}
PATHS = {"execution_id": "order-1", "event": "approved", "rule": "p-1"}


def walk(router):
    """Every method and path that the application answers to."""
    return sorted(
        f"{method} {route.path_format}"
        for route in router.routes
        for handler in route.route_handlers
        for method in handler.http_methods
        if method != "OPTIONS"
    )


async def ask(http, route, **headers):
    method, path = route.split(" ")
    path = re.sub(r"\{(\w+)\}", lambda part: PATHS[part[1]], path)
    return await http.request(method, path, json=BODIES.get(route), headers=headers)


def test_the_table_names_every_route(guarded):
    """A new route is found by the walk, and belongs into the table above."""
    assert walk(guarded.router) == sorted(NEEDS)


async def test_without_a_token_every_route_is_refused(guarded):
    """With none, with a wrong one, and with what looks like one, in the wrong place."""
    async with calling(guarded) as http:
        for route in walk(guarded.router):
            token = TOKENS["ann"]
            for headers in (
                {},
                {"authorization": "Bearer no-token-of-this-service"},
                {"authorization": f"Bearer {token}x"},
                {"authorization": f"Bearer {token[:-1]}"},
                {"authorization": f"Basic {token}"},
                {"authorization": token},
                {"authorization": "Bearer"},
                {"x-api-key": token},
                {"cookie": f"token={token}"},
            ):
                refused = await ask(http, route, **headers)
                assert refused.status_code == 401, (route, headers)
                assert refused.headers["www-authenticate"].startswith("Bearer")
                assert refused.headers["content-type"] == "application/problem+json"
        assert (await http.get(f"/api/v1/stats?token={TOKENS['ann']}")).status_code == 401


async def test_paths_that_do_not_exist_are_behind_the_gate_too(guarded):
    """Without a token nobody learns which paths there are."""
    async with calling(guarded) as http:
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"):
            for path in ("/", "/api/v1/", "/nothing", "/api/v1/executions", "/schema", "/docs"):
                assert (await http.request(method, path)).status_code == 401, (method, path)


@pytest.mark.parametrize(("who", "scope"), [("reader", "read"), ("writer", "write"), ("viewer", "payloads")])
async def test_with_one_scope_exactly_its_routes_are_open(guarded, who, scope):
    """Each of the others is refused by name."""
    async with calling(guarded, who) as http:
        for route in walk(guarded.router):
            answer = await ask(http, route)
            if NEEDS[route] == scope:
                assert answer.status_code not in (401, 403, 500), (route, answer.text)
                continue
            assert answer.status_code == 403, (route, answer.text)
            problem = answer.json()
            assert problem["type"] == "urn:zart:problem:forbidden"
            assert repr(NEEDS[route]) in problem["detail"]
            assert f'scope="{NEEDS[route]}"' in answer.headers["www-authenticate"]


async def test_a_route_without_a_scope_is_refused_to_everybody(guarded):
    """Deny by default: one that was forgotten lets nobody in."""

    @get("/forgotten")
    async def forgotten() -> str:
        return "a secret"

    @get("/misspelt", opt={"zart_scope": "raed"})
    async def misspelt() -> str:
        return "a secret"

    guarded.router.register(forgotten)
    guarded.router.register(misspelt)
    async with calling(guarded, "ann") as http:
        for path in ("/forgotten", "/misspelt"):
            refused = await http.get(path)
            assert refused.status_code == 403
            assert "secret" not in refused.text


async def test_the_router_answers_nobody_who_came_around_the_gate(guarded):
    """Its guard wants to know who the gate let in."""
    router = build_router((), guarded._service, guarded._gate)

    @get("/open", opt={"zart_scope": "read"})
    async def opened() -> str:
        return "a secret"

    router.register(opened)
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request"}

    scope = {
        "type": "http", "method": "GET", "path": "/open", "raw_path": b"/open", "root_path": "", "headers": [],
        "query_string": b"", "http_version": "1.1", "scheme": "http",
    }  # fmt: skip
    with pytest.raises(KeyError, match="zart.visit"):
        await router(scope, receive, send)
    assert sent == []


async def test_the_probes_can_be_opened_and_nothing_else_with_them(dsn, tmp_path):
    """A load balancer carries no token; it sees whether the service lives, and no more."""
    options = HttpOptions(open_probes=True)
    async with (
        create_app(dsn, token_file=token_file(tmp_path), options=options) as app,
        calling(app) as http,
    ):
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        assert (await http.get("/readyz")).json() == {"status": "ok"}
        for route in walk(app.router):
            if route not in ("GET /healthz", "GET /readyz"):
                assert (await ask(http, route)).status_code == 401, route
        assert (await http.get("/healthz", headers={"authorization": "Bearer wrong"})).status_code == 401


async def test_options_says_which_methods_there_are(guarded):
    """To whoever may call at all; it is no preflight that lets other sites in."""
    async with calling(guarded, "viewer") as http:
        answer = await http.options("/api/v1/executions/order-1")
        assert answer.status_code == 204
        assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS"
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_without_tokens_only_this_machine_is_answered(app):
    """By its address and by its name, wherever the application is mounted."""
    for base, peer in (
        ("http://localhost:8000", "10.0.0.7"),
        ("http://evil.example", "127.0.0.1"),
        ("http://10.0.0.1:8000", "127.0.0.1"),
        ("http://localhost:8000", None),
    ):
        async with calling(app, base=base, peer=peer) as http:
            for route in walk(app.router):
                refused = await ask(http, route)
                assert refused.status_code == 403, route
                assert refused.json()["type"] == "urn:zart:problem:not-local"
                assert "ZART_HTTP_TOKEN" in refused.json()["detail"]


async def test_another_sites_page_is_refused_with_a_token_and_without(app, guarded):
    """Before anything is done, by its Origin."""
    for api, who in ((app, None), (guarded, "ann")):
        async with calling(api, who) as http:
            for headers in (
                {"origin": "https://evil.example"},
                {"origin": "null"},
                {"sec-fetch-site": "cross-site"},
            ):
                refused = await http.post("/api/v1/executions", json={"name": "f"}, headers=headers)
                assert refused.status_code == 403
                assert refused.json()["type"] == "urn:zart:problem:wrong-origin"
            assert (await http.get("/api/v1/executions")).json()["executions"] == []


async def test_a_caller_that_is_too_fast_is_told_to_wait(dsn, tmp_path):
    """Each token has a rate of its own; guesses share that of their address."""
    options = HttpOptions(rate=0.5, burst=3)
    async with create_app(dsn, token_file=token_file(tmp_path), options=options) as app:
        async with calling(app, "reader") as http:
            codes = [(await http.get("/healthz")).status_code for _ in range(4)]
            assert codes == [200, 200, 200, 429]
            refused = await http.get("/healthz")
            assert refused.json()["type"] == "urn:zart:problem:too-many-requests"
            assert 1 <= int(refused.headers["retry-after"]) <= 2
        async with calling(app, "ann") as http:
            assert (await http.get("/healthz")).status_code == 200
        async with calling(app) as http:
            guesses = [
                (await http.get("/healthz", headers={"authorization": f"Bearer {n}"})).status_code
                for n in range(5)
            ]
            assert guesses == [401, 401, 401, 429, 429]
        async with calling(app, "ann") as http:
            assert (await http.get("/healthz")).status_code == 200


async def test_a_tokens_name_is_the_author_in_the_history(guarded):
    """Of each caller, though all of them share one client and its connections."""
    async with calling(guarded, "ann") as http:
        for id in ("order-1", "order-2"):
            assert (await http.post("/api/v1/executions", json={"name": "f", "id": id})).status_code == 201
        await http.post("/api/v1/executions/order-1/cancel", json={"reason": "no more needed"})
        async with calling(guarded, "writer") as other:
            await other.post("/api/v1/executions/order-2/cancel")
        notes = [(await http.get(f"/api/v1/executions/order-{n}/history")).json()["notes"] for n in (1, 2)]
    assert [len(each) for each in notes] == [1, 1]
    assert notes[0][0].endswith("cancelled by ann: no more needed")
    assert notes[1][0].endswith("cancelled by writer")


async def test_no_token_is_ever_in_an_answer_or_in_the_log(guarded, caplog):
    """Neither a right one nor a wrong one."""
    with caplog.at_level(logging.DEBUG):
        for name, token in TOKENS.items():
            async with calling(guarded) as http:
                for headers in (
                    bearer(name),
                    {"authorization": f"Bearer wrong-{token}"},
                    {"authorization": f"Basic {token}"},
                ):
                    answer = await http.get("/api/v1/nothing", headers=headers)
                    assert token not in answer.text + str(answer.headers)
    assert not [token for token in TOKENS.values() if token in caplog.text]


async def test_tokens_are_compared_in_constant_time(guarded, monkeypatch):
    """Each token of the file is compared with what was presented, by digests, whichever of them it is."""
    import hmac

    compared = []
    real = hmac.compare_digest

    def counting(a, b):
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    async with calling(guarded) as http:
        for headers in (bearer("reader"), bearer("ann"), {"authorization": "Bearer x"}):
            compared.clear()
            await http.get("/healthz", headers=headers)
            assert compared == [(64, 64)] * len(TOKENS)
