"""Waiting for a result by one long request."""

import asyncio
import time

import msgspec
import pytest

from tests.support.calling import calling
from tests.support.clients import fail, finish
from tests.support.running import until
from zart.http import HttpOptions, create_app


async def start(http, id="a"):
    assert (await http.post("/api/v1/executions", json={"name": "f", "id": id})).status_code == 201


async def waits(app):
    """How many requests wait, as the application counts."""
    return app._service.waiting


async def test_without_a_timeout_it_does_not_wait(http):
    """202, with the status."""
    await start(http)
    began = time.monotonic()
    outcome = await http.get("/api/v1/executions/a/result")
    assert time.monotonic() - began < 5
    assert outcome.status_code == 202
    assert outcome.json() == {"execution_id": "a", "status": "scheduled", "failure": None}


async def test_a_wait_ends_with_the_execution(http, app, dsn):
    """200, with the result, as soon as it is there."""
    await start(http)
    asking = asyncio.create_task(http.get("/api/v1/executions/a/result?timeout=30s"))
    await until(lambda: waits(app), "the wait")
    finish(dsn, "a", '{"total": 12}')
    outcome = await asking
    assert (outcome.status_code, outcome.json()["result"]) == (200, {"total": 12})


@pytest.mark.parametrize("status", ["failed", "cancelled", "blocked"])
async def test_every_other_end_is_an_answer_too(http, dsn, status):
    """200: the request did what it was asked for; `status` says how the execution ended."""
    await start(http)
    fail(dsn, "a", ValueError("no such card"), status=status)
    outcome = await http.get("/api/v1/executions/a/result?timeout=30")
    assert outcome.status_code == 200
    shown = outcome.json()
    assert (shown["status"], shown["failure"]["type"]) == (status, "ValueError")
    assert "result" not in shown


async def test_a_timeout_is_an_answer(http):
    """202 when it passes first; seconds as a number, or with their unit."""
    await start(http)
    for timeout in ("0.05", "50ms"):
        outcome = await http.get("/api/v1/executions/a/result", params={"timeout": timeout})
        assert (outcome.status_code, outcome.json()["status"]) == (202, "scheduled")


@pytest.mark.parametrize("timeout", ["soon", "-1", "nan", "inf", "5 parsecs"])
async def test_what_is_no_length_of_time_is_refused(http, timeout):
    """By name."""
    refused = await http.get("/api/v1/executions/a/result", params={"timeout": timeout})
    assert refused.status_code == 422
    assert "timeout is" in refused.json()["detail"]


async def test_nobody_waits_for_longer_than_the_service_allows(dsn):
    """A year becomes `max_wait`."""
    async with create_app(dsn, options=HttpOptions(max_wait="50ms")) as app, calling(app) as http:
        await start(http)
        async with asyncio.timeout(10):
            assert (await http.get("/api/v1/executions/a/result?timeout=365d")).status_code == 202


async def test_so_many_may_wait_and_no_more(dsn):
    """The next is told to come again, at once."""
    async with create_app(dsn, options=HttpOptions(max_waiting=2)) as app, calling(app) as http:
        await start(http)
        asking = [asyncio.create_task(http.get("/api/v1/executions/a/result?timeout=30s")) for _ in range(2)]
        await until(lambda: app._service.waiting == 2, "two waits")
        refused = await http.get("/api/v1/executions/a/result?timeout=30s")
        assert refused.status_code == 503
        assert refused.json()["type"] == "urn:zart:problem:busy"
        assert refused.headers["retry-after"] == "1"
        assert (await http.get("/api/v1/executions/a")).status_code == 200
        finish(dsn, "a")
        assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200, 200]


async def test_a_service_that_stops_answers_those_who_wait(app, http):
    """With how the execution stands, so that they ask another one."""
    await start(http)
    asking = asyncio.create_task(http.get("/api/v1/executions/a/result?timeout=30s"))
    await until(lambda: waits(app), "the wait")
    app.stop_waiting()
    outcome = await asking
    assert (outcome.status_code, outcome.json()["status"]) == (202, "scheduled")


class Caller:
    """A caller at the other end of ASGI, who can hang up."""

    def __init__(self, path, query=b"", method="GET", headers=(), body=None):
        self.gone = asyncio.Event()
        self.sent = []
        self.body = list(body or [b""])
        self.scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": query,
            "headers": [(b"host", b"localhost:8000"), *headers],
            "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 8000),
        }  # fmt: skip

    async def receive(self):
        if self.body:
            part = self.body.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self.body)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)


async def test_whoever_hangs_up_leaves_nothing_behind(app, http):
    """No wait at the client, no task, no place taken."""
    await start(http)
    (await http.get("/api/v1/executions/a/result?timeout=10ms")).json()
    client = await app._service.client()
    before = asyncio.all_tasks()
    callers = [Caller("/api/v1/executions/a/result", b"timeout=30s") for _ in range(20)]
    tasks = [asyncio.create_task(app(caller.scope, caller.receive, caller.send)) for caller in callers]
    await until(lambda: app._service.waiting == 20, "twenty waits")
    assert set(client._outcomes._waits) == {"a"}
    for caller in callers:
        caller.gone.set()
    await asyncio.gather(*tasks)
    assert app._service.waiting == 0
    assert client._outcomes._waits == {}
    assert asyncio.all_tasks() == before


async def test_a_request_that_is_cut_off_leaves_nothing_behind(app, http):
    """Some hosts cancel what they called."""
    await start(http)
    (await http.get("/api/v1/executions/a/result?timeout=10ms")).json()
    client = await app._service.client()
    before = asyncio.all_tasks()
    caller = Caller("/api/v1/executions/a/result", b"timeout=30s")
    task = asyncio.create_task(app(caller.scope, caller.receive, caller.send))
    await until(lambda: waits(app), "the wait")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (app._service.waiting, client._outcomes._waits) == (0, {})
    assert asyncio.all_tasks() == before


async def test_a_caller_that_hangs_up_while_it_sends_starts_nothing(app, http, caplog):
    """Half a body is no request, and no fault of the service."""
    caller = Caller("/api/v1/executions", method="POST", body=[b'{"name": "f",', b'"id": "a"}'])
    parts = iter(
        [{"type": "http.request", "body": b'{"name"', "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive():
        return next(parts)

    with caplog.at_level("INFO", "zart.http"):
        await app(caller.scope, receive, caller.send)
    assert (await http.get("/api/v1/executions")).json()["executions"] == []
    assert [record.levelname for record in caplog.records if record.name == "zart.http"].count("ERROR") == 0
    assert "POST /api/v1/executions: 499" in caplog.text


async def test_a_body_that_takes_too_long_is_not_waited_for(dsn):
    """408, and the connection is closed."""
    async with create_app(dsn, options=HttpOptions(body_timeout="50ms")) as app:
        caller = Caller("/api/v1/executions", method="POST")
        never = asyncio.Event()

        async def receive():
            await never.wait()

        async with asyncio.timeout(10):
            await app(caller.scope, receive, caller.send)
        begun, body = caller.sent
        assert begun["status"] == 408
        assert (b"connection", b"close") in begun["headers"]
        assert msgspec.json.decode(body["body"])["type"] == "urn:zart:problem:body-too-slow"


async def test_a_body_in_pieces_is_counted_as_it_comes(dsn):
    """What is over the bound is not read to its end, whatever it announces."""
    async with create_app(dsn, options=HttpOptions(max_body=1000)) as app:
        caller = Caller("/api/v1/events/a/e", method="POST")
        pieces = 0

        async def receive():
            nonlocal pieces
            pieces += 1
            return {"type": "http.request", "body": b"[" * 300, "more_body": True}

        await app(caller.scope, receive, caller.send)
        assert caller.sent[0]["status"] == 413
        assert pieces == 4
