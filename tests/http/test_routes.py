"""What each route does, over a real database."""

import datetime as dt
from urllib.parse import quote

import pytest

from tests.support.calling import calling
from tests.support.clients import fail, finish, rows
from tests.support.running import query, until_status, working
from zart import Client, durable, progress, step, telemetry, wait_for_event

AWKWARD = [
    "a/b", "a/b/c//d", "/", "what?", "#1", "50%", "%2F", "a b", " ", "ä€漢🐍", "a+b", "a;b=c", ".", "..", "a/../b",
    "{x}", "\\", '"', "a&b", "~", ":", "x" * 200,
]  # fmt: skip
"""Ids that a path does not like."""


async def test_an_execution_is_started_by_name(http, dsn):
    """201 with its place; the same again is 200, and nothing new."""
    body = {
        "name": "ship",
        "id": "order-1",
        "data": {"number": 7},
        "queue": "mail",
        "priority": 3,
        "version": "2",
    }
    first = await http.post("/api/v1/executions", json=body)
    assert (first.status_code, first.json()) == (201, {"id": "order-1", "created": True})
    assert first.headers["location"] == "/api/v1/executions/order-1"
    again = await http.post("/api/v1/executions", json=body)
    assert (again.status_code, again.json()) == (200, {"id": "order-1", "created": False})
    stored = rows(dsn, "SELECT name, payload, queue, version FROM zart_v_executions")
    assert [(name, payload["number"], *rest) for name, payload, *rest in stored] == [("ship", 7, "mail", "2")]
    assert rows(dsn, "SELECT priority FROM zart_tasks") == [(3,)]


async def test_without_an_id_it_gets_one(http):
    """Each start is another execution."""
    ids = {(await http.post("/api/v1/executions", json={"name": "ship"})).json()["id"] for _ in range(2)}
    assert len(ids) == 2


async def test_a_start_can_be_put_off(http, dsn):
    """By a length of time, or to a time; not by both."""
    at = "2030-01-02T03:04:05+02:00"
    assert (
        await http.post("/api/v1/executions", json={"name": "f", "id": "a", "delay": "2h"})
    ).status_code == 201
    assert (
        await http.post("/api/v1/executions", json={"name": "f", "id": "b", "delay": 60})
    ).status_code == 201
    assert (await http.post("/api/v1/executions", json={"name": "f", "id": "c", "at": at})).status_code == 201
    due = dict(rows(dsn, "SELECT execution_id, due_at FROM zart_tasks"))
    assert due["a"] - due["b"] > dt.timedelta(minutes=118)
    assert due["c"] == dt.datetime.fromisoformat(at)
    both = await http.post("/api/v1/executions", json={"name": "f", "delay": 1, "at": at})
    assert both.status_code == 422
    assert "give one of them" in both.json()["detail"]


async def test_data_that_is_null_is_not_data_that_is_missing(http, dsn):
    """The one is the function's input, the other says that it takes none."""
    await http.post("/api/v1/executions", json={"name": "f", "id": "null", "data": None})
    await http.post("/api/v1/executions", json={"name": "f", "id": "none"})
    stored = rows(dsn, "SELECT id, payload, payload IS NULL FROM zart_executions ORDER BY id")
    assert stored == [("none", None, True), ("null", None, False)]


async def test_another_input_under_an_id_is_a_conflict(http):
    """409, and nothing was started; `on_conflict` takes what is there."""
    await http.post("/api/v1/executions", json={"name": "ship", "id": "order-1", "data": 1})
    other = {"name": "ship", "id": "order-1", "data": 2}
    refused = await http.post("/api/v1/executions", json=other)
    assert refused.status_code == 409
    problem = refused.json()
    assert problem["type"] == "urn:zart:problem:execution-conflict"
    assert problem["execution_id"] == "order-1"
    taken = await http.post("/api/v1/executions", json=other | {"on_conflict": "return"})
    assert (taken.status_code, taken.json()["created"]) == (200, False)


async def test_an_execution_is_shown_as_the_client_shows_it(http, dsn):
    """Every field that `Client.status` has."""
    await http.post("/api/v1/executions", json={"name": "ship", "id": "order-1"})
    shown = (await http.get("/api/v1/executions/order-1")).json()
    async with Client(dsn) as client:
        execution = await client.status("order-1")
    assert set(shown) >= set(execution.__struct_fields__) - {"paused_by"}
    assert (shown["id"], shown["name"], shown["status"], shown["run_id"]) == (
        "order-1", "ship", "scheduled", execution.run_id,
    )  # fmt: skip
    assert dt.datetime.fromisoformat(shown["created_at"]) == execution.created_at


@pytest.mark.parametrize("path", ["", "/history", "/runs", "/result"])
async def test_an_unknown_execution_is_not_found(http, path):
    """404, with its id."""
    refused = await http.get(f"/api/v1/executions/nobody{path}")
    assert refused.status_code == 404
    problem = refused.json()
    assert problem["type"] == "urn:zart:problem:execution-not-found"
    assert problem["execution_id"] == "nobody"
    assert problem["instance"] == f"/api/v1/executions/nobody{path}"


async def test_executions_are_listed_by_pages(http):
    """The newest first; the link of each page leads to the next, with the filters, until there is none."""
    for number in range(7):
        await http.post(
            "/api/v1/executions", json={"name": "ship" if number % 7 else "other", "id": f"order-{number}"}
        )
    found, path, pages = [], "/api/v1/executions?name=ship&status=scheduled&id_prefix=order-&limit=2", 0
    while path:
        answer = await http.get(path)
        page = answer.json()
        found += [execution["id"] for execution in page["executions"]]
        link = f'<{page["next"]}>; rel="next"' if page["next"] else None
        assert answer.headers.get("link") == link
        path, pages = page["next"], pages + 1
        await http.post("/api/v1/executions", json={"name": "ship", "id": f"order-new-{pages}"})
    assert found == [f"order-{number}" for number in range(6, 0, -1)]
    assert pages == 3


async def test_the_list_can_be_bounded_by_time(http, dsn):
    """`since` is part of the time, `until` is not."""
    await http.post("/api/v1/executions", json={"name": "f", "id": "a"})
    ((at,),) = rows(dsn, "SELECT created_at FROM zart_executions")
    stamp = at.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    assert len((await http.get("/api/v1/executions", params={"since": stamp})).json()["executions"]) == 1
    assert (await http.get("/api/v1/executions", params={"until": stamp})).json() == {
        "executions": [],
        "next": None,
    }


@pytest.mark.parametrize(
    "params",
    [
        {"status": "done"},
        {"status": "null"},
        {"since": "null"},
        {"since": "1"},
        {"until": "1.5e3"},
        {"limit": "0"},
        {"limit": "501"},
        {"limit": "x"},
        {"since": "yesterday"},
        {"since": "2026-01-01T00:00:00"},
        {"colour": "red"},
    ],
)
async def test_a_query_that_does_not_fit_is_refused_by_its_field(http, params):
    """What is not known is refused too: a filter that is misspelt would show everything."""
    refused = await http.get("/api/v1/executions", params=params)
    assert refused.status_code == 400
    assert next(iter(params)) in refused.json()["detail"]


async def test_a_parameter_given_twice_is_refused(http):
    """Nobody knows which of them was meant."""
    assert (await http.get("/api/v1/executions?name=a&name=b")).status_code == 400


async def test_an_event_resumes_what_waits_for_it(dsn, http):
    """202; the body is the payload."""

    @durable("approve")
    async def approve() -> bool:
        return (await wait_for_event("manager-approval"))["approved"]

    async with working(dsn, approve) as client:
        await client.start(approve, id="order-1")
        await until_status(client, "order-1", "waiting")
        answer = await http.post("/api/v1/events/order-1/manager-approval", json={"approved": True})
        assert (answer.status_code, answer.json()) == (202, {"added": True})
        outcome = await http.get("/api/v1/executions/order-1/result?timeout=15s")
        assert outcome.json() == {
            "execution_id": "order-1",
            "status": "completed",
            "failure": None,
            "result": True,
        }


async def test_what_curl_sends_is_json_whatever_it_calls_it(http, dsn):
    """`curl -d` says that it is a form; no type at all is fine, too."""
    await http.post("/api/v1/executions", json={"name": "f", "id": "a"})
    for kind in (
        "application/x-www-form-urlencoded",
        "",
        "application/json; charset=utf-8",
        "application/cloudevents+json",
    ):
        headers = {"content-type": kind} if kind else {}
        answer = await http.post("/api/v1/events/a/e", content=b'{"approved": true}', headers=headers)
        assert answer.status_code == 202, kind
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/xml", "application/jsonp"):
        refused = await http.post(
            "/api/v1/events/a/e", content=b'{"approved": true}', headers={"content-type": kind}
        )
        assert refused.status_code == 415, kind
    assert rows(dsn, "SELECT payload FROM zart_events") == [({"approved": True},)] * 4


async def test_a_redelivered_event_is_taken_once(http, dsn):
    """`Idempotency-Key` is what it is known by."""
    await http.post("/api/v1/executions", json={"name": "f", "id": "a"})
    headers = {"Idempotency-Key": "mail-7781"}
    answers = [(await http.post("/api/v1/events/a/e", json=n, headers=headers)).json() for n in range(3)]
    assert answers == [{"added": True}, {"added": False}, {"added": False}]
    assert rows(dsn, "SELECT payload, dedup FROM zart_events") == [(0, "mail-7781")]
    long = await http.post("/api/v1/events/a/e", headers={"Idempotency-Key": "k" * 201})
    assert long.status_code == 422


async def test_an_event_without_a_body_is_null(http, dsn):
    """A bare POST is enough for a signal."""
    await http.post("/api/v1/executions", json={"name": "f", "id": "a"})
    assert (await http.post("/api/v1/events/a/e")).status_code == 202
    assert rows(dsn, "SELECT payload, payload IS NULL FROM zart_events") == [(None, False)]


async def test_an_event_for_nobody_and_for_what_has_ended(http, dsn):
    """404, and 409."""
    assert (await http.post("/api/v1/events/nobody/e")).status_code == 404
    await http.post("/api/v1/executions", json={"name": "f", "id": "a"})
    finish(dsn, "a")
    late = await http.post("/api/v1/events/a/e")
    assert late.status_code == 409
    assert late.json()["type"] == "urn:zart:problem:execution-finished"
    assert late.json()["execution_id"] == "a"


@pytest.mark.parametrize("id", AWKWARD)
async def test_ids_and_names_may_hold_any_sign(http, dsn, id):
    """Percent-encoded, they come through every route as they are."""
    if "~" in id:
        assert (await http.post("/api/v1/executions", json={"name": "f", "id": id})).status_code == 422
        return
    started = await http.post("/api/v1/executions", json={"name": "f", "id": id})
    assert started.status_code == 201
    encoded = quote(id, safe="").replace(".", "%2E")
    # What httpx makes of a path with dots in it is the client's affair.
    path = f"/api/v1/executions/{encoded}"
    if "." not in id:
        assert (await http.get(started.headers["location"])).json()["id"] == id
        assert (await http.get(path)).json()["id"] == id
        assert (await http.get(f"{path}/history")).json()["execution"]["id"] == id
        assert (await http.post(f"/api/v1/events/{encoded}/{encoded}", json=1)).status_code == 202
        assert rows(dsn, "SELECT execution_id, name FROM zart_events") == [(id, id)]
        assert (await http.post(f"{path}/cancel")).json() == {"changed": True}
    listed = await http.get("/api/v1/executions", params={"id_prefix": id, "limit": 1})
    assert [execution["id"] for execution in listed.json()["executions"]] == [id]


async def test_ids_of_children_can_be_looked_up(http, dsn):
    """They contain `~`, which no caller may choose."""
    async with Client(dsn) as client:
        await client.start("f", id="a")
    await query(dsn, "UPDATE zart_executions SET id = 'a~1'")
    await query(dsn, "UPDATE zart_tasks SET execution_id = 'a~1'")
    assert (await http.get("/api/v1/executions/a~1")).json()["id"] == "a~1"
    assert (await http.get("/api/v1/executions/a%7E1")).json()["id"] == "a~1"


@pytest.mark.parametrize(
    "path", ["/api/v1/executions//history", "/api/v1//executions", "//healthz", "/api/v1/events/a//"]
)
async def test_an_empty_part_of_a_path_is_no_id(app, path):
    """And is not skipped: that would be another path."""
    async with calling(app, base="http://localhost:8000") as http:
        request = http.build_request("GET", "http://localhost:8000")
        request.url = request.url.copy_with(raw_path=path.encode())
        assert (await http.send(request)).status_code == 404


async def test_cancel_and_what_it_changed(http):
    """True the first time, with the reason in the history; false when there is nothing to cancel."""
    await http.post("/api/v1/executions", json={"name": "f", "id": "a"})
    first = await http.post("/api/v1/executions/a/cancel", json={"reason": "no longer wanted"})
    assert (first.status_code, first.json()) == (200, {"changed": True})
    assert (await http.post("/api/v1/executions/a/cancel", json={"force": True})).json() == {"changed": False}
    outcome = await http.get("/api/v1/executions/a/result")
    assert (outcome.status_code, outcome.json()["status"]) == (200, "cancelled")
    assert "no longer wanted" in outcome.json()["failure"]["message"]


async def test_resume_of_what_is_blocked(http, dsn):
    """And of what is not."""
    await http.post("/api/v1/executions", json={"name": "f", "id": "a"})
    assert (await http.post("/api/v1/executions/a/resume")).json() == {"changed": False}
    fail(dsn, "a", RuntimeError("the step has another name"), status="blocked")
    blocked = await http.get("/api/v1/executions/a/result?timeout=10s")
    assert (blocked.status_code, blocked.json()["status"]) == (200, "blocked")
    body = {"reason": "renamed back", "accept_arguments": True}
    assert (await http.post("/api/v1/executions/a/resume", json=body)).json() == {"changed": True}
    assert rows(dsn, "SELECT state, accept_arguments FROM zart_tasks") == [("ready", True)]


async def test_history_and_runs(http, dsn):
    """The records in their order, with what went wrong and how far a step says it is."""

    @step("charge", retry="fixed(1, 0s)")
    async def charge(amount: int) -> str:
        progress({"done": amount})
        raise ValueError(f"card 4711 refuses {amount}")

    @durable("pay")
    async def pay() -> None:
        await charge(12)

    async with working(dsn, pay) as client:
        await client.start(pay, id="a")
        await until_status(client, "a", "failed")
    shown = (await http.get("/api/v1/executions/a/history")).json()
    (record,) = [record for record in shown["records"] if record["key"] == "charge"]
    assert (record["kind"], record["state"], record["attempts"]) == ("step", "failed", 2)
    assert record["failure"]["message"] == "card 4711 refuses 12"
    assert "in charge" in record["failure"]["traceback"]
    assert shown["runs"] == [shown["run_id"]]
    assert any(
        "attempt 1 of 'charge' failed: ValueError: card 4711 refuses 12" in note for note in shown["notes"]
    )
    runs = (await http.get("/api/v1/executions/a/runs")).json()
    assert (runs["execution_id"], runs["run_id"]) == ("a", shown["run_id"])
    assert [(run["run_id"], run["status"]) for run in runs["runs"]] == [(shown["run_id"], "failed")]
    run = await http.get("/api/v1/executions/a/history", params={"run_id": shown["run_id"]})
    assert run.json() == shown
    assert (await http.get("/api/v1/executions/a/history?run_id=nothing")).status_code == 404


async def test_without_the_scope_payloads_nothing_of_peoples_data_is_shown(dsn, guarded):
    """Not in results, failures, progress, or notes; that something failed, and where, is."""

    @step("charge", retry="fixed(1, 0s)")
    async def charge(card: str) -> str:
        progress({"card": card})
        raise ValueError(f"card {card} is refused")

    @durable("pay")
    async def pay(card: str) -> str:
        if card == "good-secret":
            return card
        await charge(card)
        return "never"

    secret = "secret"
    async with working(dsn, pay) as client:
        await client.start(pay, "bad-secret", id="bad")
        await client.start(pay, "good-secret", id="good")
        await until_status(client, "bad", "failed")
        await until_status(client, "good", "completed")
        await client.cancel("bad", reason="secret")
        await client.start("nobody", {"card": "secret"}, id="cancelled")
        await client.cancel("cancelled", reason="secret")
    paths = [
        f"/api/v1/executions{path}"
        for path in (
            "",
            "/bad",
            "/bad/history",
            "/bad/runs",
            "/bad/result",
            "/good/result",
            "/cancelled/history",
            "/cancelled/result",
        )
    ]
    async with calling(guarded, "clerk") as clerk, calling(guarded, "auditor") as auditor:
        for path in paths:
            assert secret not in (await clerk.get(path)).text, path
        assert secret not in (await clerk.get("/metrics")).text
        conflict = await clerk.post("/api/v1/executions", json={"name": "pay", "id": "bad", "data": "x"})
        assert conflict.status_code == 409
        assert secret not in conflict.text
        failure = (await clerk.get("/api/v1/executions/bad/history")).json()["records"][0]["failure"]
        assert failure == {"type": "ValueError", "step": "charge", "attempts": 2}
        notes = (await clerk.get("/api/v1/executions/bad/history")).json()["notes"]
        assert any(note.endswith("attempt 1 of 'charge' failed") for note in notes)
        shown = [path for path in paths if secret in (await auditor.get(path)).text]
    assert shown == paths


async def test_stats_and_metrics_count_the_same(http):
    """Executions by status, what nobody serves, workers."""
    for number in range(3):
        await http.post("/api/v1/executions", json={"name": 'f"\\', "id": f"a{number}"})
    await http.post("/api/v1/executions/a0/cancel")
    stats = (await http.get("/api/v1/stats")).json()
    assert stats == {"by_status": {"scheduled": 2, "cancelled": 1}, "unserved": {'f"\\': 2}, "workers": 0}
    metrics = await http.get("/metrics")
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'zart_executions{status="scheduled"} 2\n' in metrics.text
    assert 'zart_unserved_tasks{function="f\\"\\\\"} 2\n' in metrics.text
    assert "\nzart_workers 0\n" in metrics.text
    assert "zart_worker_slots" not in metrics.text


async def test_metrics_of_a_worker_in_the_same_process_are_among_them(http):
    """An application that runs a worker, too, and keeps its metrics shows them at the same place."""
    subscription = telemetry.prometheus()
    try:
        assert "\nzart_worker_slots 0.0\n" in (await http.get("/metrics")).text
    finally:
        subscription.close()
    assert "zart_worker_slots" not in (await http.get("/metrics")).text


async def test_healthz_asks_nobody_and_readyz_the_database(http, dsn):
    """A service whose database is behind lives, and is not ready."""
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/readyz")).json() == {"status": "ok"}
    await query(dsn, "DELETE FROM zart_migrations WHERE number = (SELECT max(number) FROM zart_migrations)")
    assert (await http.get("/healthz")).status_code == 200
    behind = await http.get("/readyz")
    assert behind.status_code == 503
    assert "zart migrate" in behind.json()["reason"]
    await query(dsn, "UPDATE zart_migrations SET number = 9999 WHERE number = 1")
    assert (await http.get("/readyz")).json()["reason"] == "the database is newer than this service"


async def test_head_is_get_without_a_body(http):
    """The same status and headers."""
    await http.post("/api/v1/executions", json={"name": "f", "id": "a"})
    for path in (
        "/healthz",
        "/api/v1/executions",
        "/api/v1/executions/a",
        "/api/v1/executions/nobody",
        "/nothing",
    ):
        got, head = await http.get(path), await http.head(path)
        assert head.content == b""
        assert head.status_code == got.status_code
        if got.status_code == 200:
            assert head.headers["content-length"] == got.headers["content-length"]


async def test_another_prefix(dsn):
    """Or none."""
    from zart.http import create_app

    for prefix in ("/zart", "", "/a/b/v2"):
        async with create_app(dsn, prefix=prefix) as app, calling(app) as http:
            started = await http.post(f"{prefix}/executions", json={"name": "f", "id": f"of{prefix}"})
            assert started.headers["location"] == f"{prefix}/executions/of{quote(prefix, safe='')}"
            paths = (await http.get(f"{prefix}/openapi.json")).json()["paths"]
            assert [path for path in paths if not path.startswith(f"{prefix}/")] == []
            assert (await http.get("/healthz")).status_code == 200
