"""Every error is a problem by RFC 9457, and says no more than it should."""

import logging

import msgspec
import pytest

import zart
from tests.support.calling import calling
from zart._postgres.connections import DatabaseUnreachable
from zart.errors import ZartError
from zart.http import HttpOptions, create_app, problems

FAILURE = zart.Failure(type="ValueError", message="no such card", step=None, attempts=1, traceback="")


def every(kind):
    """A class of errors, and all that derive from it."""
    return {kind}.union(*(every(below) for below in kind.__subclasses__()))


def test_each_of_zarts_errors_has_its_line():
    """A new one is given a kind of its own, or is said to be a fault of ours, and never by accident."""
    named = [sort for sort, _ in problems._OF_ERRORS]
    ours = {kind for kind in every(ZartError) if kind.__module__ == "zart.errors"} - {ZartError}
    public = {kind for kind in ours if not kind.__name__.startswith("_")}
    assert sorted(kind.__name__ for kind in public if not issubclass(kind, tuple(named))) == []


@pytest.mark.parametrize(
    ("error", "status", "name"),
    [
        (zart.ExecutionNotFound("x", execution_id="a"), 404, "execution-not-found"),
        (zart.ExecutionConflict("x", execution_id="a"), 409, "execution-conflict"),
        (zart.ExecutionFinished("x", execution_id="a"), 409, "execution-finished"),
        (zart.ExecutionBlocked(FAILURE, execution_id="a"), 409, "execution-in-another-state"),
        (zart.ExecutionFailed(FAILURE, execution_id="a"), 409, "execution-in-another-state"),
        (zart.ExecutionCancelled("x", execution_id="a"), 409, "execution-in-another-state"),
        (zart.UsageError("x"), 422, "refused"),
        (zart.SerializationError("x"), 422, "cannot-be-stored"),
        (zart.PayloadError("x", path="$.a"), 422, "payload-misfit"),
        (zart.SchemaError("x"), 503, "schema-mismatch"),
        (DatabaseUnreachable("x"), 503, "database-unreachable"),
        (ZeroDivisionError("x"), 500, "internal"),
        (zart.ZartError("x"), 500, "internal"),
    ],
)
async def test_an_error_of_the_client_is_a_problem(http, monkeypatch, error, status, name):
    """With its type, the execution and the field that it is about, and the request's id."""

    async def failing(*_args, **_options):
        raise error

    monkeypatch.setattr(zart.Client, "status", failing)
    refused = await http.get("/api/v1/executions/a", headers={"X-Request-ID": "q-1"})
    assert refused.status_code == status
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["x-request-id"] == "q-1"
    problem = msgspec.json.decode(refused.content, type=problems.Problem)
    assert (problem.type, problem.status) == (f"urn:zart:problem:{name}", status)
    assert (problem.instance, problem.request_id) == ("/api/v1/executions/a", "q-1")
    known = getattr(error, "execution_id", None)
    assert problem.execution_id == (msgspec.UNSET if known is None else known)
    assert problem.field == (getattr(error, "path", None) or msgspec.UNSET)
    assert ("retry-after" in refused.headers) is (name == "database-unreachable")


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("the secret"), zart.SchemaError("the secret"), DatabaseUnreachable("the secret")],
)
async def test_what_went_wrong_inside_is_told_to_the_log_alone(http, monkeypatch, caplog, error):
    """The caller gets the request's id, by which the log knows it."""

    async def failing(*_args, **_options):
        raise error

    monkeypatch.setattr(zart.Client, "status", failing)
    with caplog.at_level(logging.ERROR, "zart.http"):
        refused = await http.get("/api/v1/executions/a")
    assert "secret" not in refused.text
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert refused.json()["request_id"] in line
    assert "the secret" in line


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/api", "/api/v1", "/api/v2/stats", "/schema", "/api/v1/executions/a/b/c"]
)
async def test_an_unknown_path_is_a_problem(http, path):
    """404, for every method."""
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
        refused = await http.request(method, path)
        assert refused.status_code == 404, method
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["type"] == "urn:zart:problem:no-route"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/healthz", "GET, HEAD, OPTIONS"),
        ("PUT", "/api/v1/executions", "GET, HEAD, OPTIONS, POST"),
        ("GET", "/api/v1/events/a/e", "OPTIONS, POST"),
        ("HEAD", "/api/v1/events/a/e", "OPTIONS, POST"),
        ("PATCH", "/api/v1/executions/a", "DELETE, GET, HEAD, OPTIONS"),
        ("TRACE", "/api/v1/stats", "GET, HEAD, OPTIONS"),
        ("BREW", "/api/v1/stats", "GET, HEAD, OPTIONS"),
    ],
)
async def test_a_wrong_method_is_a_problem(http, method, path, allowed):
    """405, and which methods there are."""
    refused = await http.request(method, path)
    assert refused.status_code == 405
    assert refused.headers["allow"] == allowed
    assert refused.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 400, "no body"),
        (b"{", 400, "no JSON"),
        (b"nonsense", 400, "no JSON"),
        (b"\xff\xfe", 400, "no JSON"),
        (b'{"name": "\xff"}', 400, "no JSON"),
        (b'{"name": NaN}', 400, "no JSON"),
        (b'{"name": "f"} x', 400, "no JSON"),
        (b"[]", 400, "does not fit"),
        (b"null", 400, "does not fit"),
        (b"{}", 400, "name"),
        (b'{"name": 7}', 400, "$.name"),
        (b'{"name": "f", "priority": "7"}', 400, "$.priority"),
        (b'{"name": "f", "nmae": "g"}', 400, "nmae"),
        (b'{"name": "f", "on_conflict": "ignore"}', 400, "$.on_conflict"),
        (b'{"name": "f", "at": "2026-01-01T00:00:00"}', 400, "$.at"),
        (b'{"name": ""}', 422, "empty"),
        (b'{"name": "f", "id": "a~b"}', 422, "~"),
        (b'{"name": "f", "id": "a\\u0000"}', 422, "control character"),
        (b'{"name": "f", "delay": "soon"}', 422, "delay"),
        (b'{"name": "f", "priority": 99999999999}', 422, "priority"),
        (b'{"name": "f", "data": "\\u0000"}', 422, "NUL"),
        (b'{"name": "f", "data": 1e999}', 400, ""),
    ],
)
async def test_a_body_that_does_not_fit_is_refused_by_its_field(http, body, status, told):
    """400 for what cannot be read, 422 for what Zart does not take."""
    refused = await http.post(
        "/api/v1/executions", content=body, headers={"content-type": "application/json"}
    )
    assert refused.status_code == status, refused.text
    assert told in refused.json()["detail"]
    assert (await http.get("/api/v1/executions")).json()["executions"] == []


async def test_a_deep_body_is_refused_and_a_deep_payload_too(http):
    """By the bound of the service, and by that of what can be stored; brackets in text do not count."""
    await http.post("/api/v1/executions", json={"name": "f", "id": "a"})

    async def offer(content):
        headers = {"content-type": "application/json"}
        return await http.post("/api/v1/events/a/e", content=content, headers=headers)

    assert (await offer(b"[" * 512 + b"]" * 512)).status_code == 202
    stored = await offer(b"[" * 513 + b"]" * 513)
    assert (stored.status_code, stored.json()["type"]) == (422, "urn:zart:problem:cannot-be-stored")
    for deep in (
        b"[" * 521 + b"]" * 521,
        b"[" * 500_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[[]," * 5000 + b"1" + b"]" * 5000,
    ):
        refused = await offer(deep)
        assert refused.status_code == 400
        assert "nested more than 520 levels" in refused.json()["detail"]
    assert (await offer(b'"' + b"[" * 10_000 + b'"')).status_code == 202
    assert (await offer(b"[" + b",".join([b"[]"] * 100_000) + b"]")).status_code == 202


async def test_a_large_payload_is_taken_to_the_last_byte_and_no_further(http):
    """A payload of a MiB, with what stands around it; more is refused, before it is read where it says so."""
    await http.post("/api/v1/executions", json={"name": "f", "id": "a"})
    headers = {"content-type": "application/json"}
    most = b'"' + b"x" * ((1 << 20) - 2) + b'"'
    assert (await http.post("/api/v1/events/a/e", content=most, headers=headers)).status_code == 202
    over = await http.post("/api/v1/events/a/e", content=b" " + most[:-1] + b'x"', headers=headers)
    assert (over.status_code, over.json()["type"]) == (422, "urn:zart:problem:cannot-be-stored")
    huge = await http.post("/api/v1/events/a/e", content=b" " * (2 << 20), headers=headers)
    assert (huge.status_code, huge.json()["type"]) == (413, "urn:zart:problem:body-too-large")
    started = {"name": "f", "id": "b", "data": "x" * ((1 << 20) - 2)}
    assert (await http.post("/api/v1/executions", json=started)).status_code == 201


async def test_every_answer_has_an_id_and_the_headers_of_safety(http):
    """Successes, problems, probes."""
    ids = set()
    for path in ("/healthz", "/api/v1/executions", "/api/v1/executions/nobody", "/nothing", "/metrics"):
        answer = await http.get(path)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
        ids.add(answer.headers["x-request-id"])
    assert len(ids) == 5


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "ä", "a\tb", "<script>"])
async def test_a_request_id_that_is_none_is_replaced(http, given):
    """It goes into headers and into the log."""
    answer = await http.get("/healthz", headers={"X-Request-ID": given.encode("latin-1")})
    assert answer.headers["x-request-id"] != given
    assert len(answer.headers["x-request-id"]) == 32


async def test_the_log_has_one_line_for_each_request(guarded, caplog):
    """Who asked what, and what came of it; no query, no body, nothing that a caller could write lines with."""
    with caplog.at_level(logging.INFO, "zart.http"):
        async with calling(guarded, "ann") as http:
            body = {"name": "f", "id": "a", "data": "the secret"}
            await http.post("/api/v1/executions", json=body, headers={"X-Request-ID": "q-1"})
            await http.get("/api/v1/executions?name=the+secret")
            await http.get("/api/v1/executions/%0aforged%20line")
    lines = [record.getMessage() for record in caplog.records if record.name == "zart.http"]
    assert lines[0].startswith("request q-1, POST /api/v1/executions by ann: 201 in ")
    assert lines[2].split(", ")[1].startswith("GET /api/v1/executions/%0aforged%20line by ann: 404")
    assert len(lines) == 3
    assert not [line for line in lines if "secret" in line or "\n" in line]


async def test_a_database_that_is_away_is_a_problem(dsn, tmp_path):
    """503 and when to ask again; it lives, and is not ready; the next request tries again."""
    nowhere = f"postgresql://nobody:hunter2@/nothing?host={tmp_path}&connect_timeout=1"
    app = create_app(nowhere)
    async with calling(app) as http:
        assert (await http.get("/healthz")).status_code == 200
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
        refused = await http.get("/api/v1/stats")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "2"
        for answer in (ready, refused):
            assert "hunter2" not in answer.text
            assert str(tmp_path) not in answer.text
    await app.aclose()


async def test_websockets_are_refused(app):
    """There are none here."""
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    await app({"type": "websocket", "path": "/", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    "options",
    [
        {"max_body": 0},
        {"max_depth": True},
        {"burst": 1.5},
        {"rate": 0},
        {"rate": "fast"},
        {"hosts": "localhost"},
        {"hosts": ("",)},
        {"max_wait": "soon"},
        {"body_timeout": -1},
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options):
    """When they are made."""
    with pytest.raises(zart.UsageError, match=next(iter(options))):
        HttpOptions(**options)


@pytest.mark.parametrize("prefix", ["api", "/api/", "/a b", "/{id}", "/a//b", "/ä", "/a?b"])
def test_a_prefix_that_cannot_be_is_refused(prefix):
    """When the application is made."""
    with pytest.raises(zart.UsageError, match="prefix"):
        create_app("postgresql://localhost/x", prefix=prefix)
