"""The routes by which people mend, hold back and delete."""

import pytest

from tests.support.calling import calling
from tests.support.clients import fail, finish
from tests.support.running import until_status, working
from zart import durable, step


async def start(http, id="a", name="f"):
    assert (await http.post("/api/v1/executions", json={"name": name, "id": id})).status_code == 201


async def test_a_step_that_failed_is_tried_again(dsn, guarded):
    """With a new budget, in the same run, and signed; what has not failed is not changed, an unknown key is refused."""
    works = False

    @step("charge")
    async def charge() -> str:
        if not works:
            raise ValueError("the bank is down")
        return "receipt"

    @durable("pay")
    async def pay() -> str:
        return await charge()

    async with working(dsn, pay) as client, calling(guarded, "ann") as http:
        await client.start(pay, id="a")
        await until_status(client, "a", "failed")
        works = True
        path = "/api/v1/executions/a/retry-step"
        asked = await http.post(path, json={"key": "charge", "reason": "it is up again"})
        assert (asked.status_code, asked.json()) == (200, {"changed": True})
        outcome = (await http.get("/api/v1/executions/a/result?timeout=30s")).json()
        assert (outcome["status"], outcome["result"]) == ("completed", "receipt")
        notes = (await http.get("/api/v1/executions/a/history")).json()["notes"]
        assert any("by ann: it is up again" in note for note in notes)
        assert (await http.post(path, json={"key": "charge"})).status_code == 409
        assert (
            await http.post("/api/v1/executions/nobody/retry-step", json={"key": "charge"})
        ).status_code == 404
        assert (await http.post(path)).status_code == 400


async def test_an_execution_is_begun_again(http, dsn):
    """As another run, with the input it had or another one."""
    await http.post("/api/v1/executions", json={"name": "f", "id": "a", "data": 1})
    first = (await http.get("/api/v1/executions/a")).json()["run_id"]
    finish(dsn, "a")
    again = await http.post("/api/v1/executions/a/restart", json={"reason": "once more"})
    assert again.status_code == 200
    second = again.json()["run_id"]
    assert (await http.post("/api/v1/executions/a/restart", json={"data": {"n": 2}})).status_code == 200
    runs = (await http.get("/api/v1/executions/a/runs")).json()
    assert [run["run_id"] for run in runs["runs"]][:2] == [first, second]
    assert len(runs["runs"]) == 3
    earlier = await http.get("/api/v1/executions/a/history", params={"run_id": first})
    assert earlier.json()["run_id"] == first
    assert (await http.post("/api/v1/executions/nobody/restart")).status_code == 404


async def test_some_steps_are_run_again(dsn, http):
    """In another run, which keeps the others' results and says which of them may be out of date."""
    ran = []

    @step("one")
    async def one() -> int:
        ran.append("one")
        return 1

    @step("two")
    async def two(number: int) -> int:
        ran.append("two")
        return number + 1

    @durable("count")
    async def count() -> int:
        return await two(await one())

    async with working(dsn, count) as client:
        await client.start(count, id="a")
        await until_status(client, "a", "completed")
        again = await http.post("/api/v1/executions/a/rerun", json={"steps": ["one"], "reason": "it lied"})
        assert again.status_code == 200
        assert again.json()["stale"] == ["two"]
        outcome = (await http.get("/api/v1/executions/a/result?timeout=30s")).json()
        assert outcome["result"] == 2
    assert ran == ["one", "two", "one"]
    assert (await http.get("/api/v1/executions/a")).json()["run_id"] == again.json()["run_id"]
    unknown = await http.post("/api/v1/executions/a/rerun", json={"steps": ["three"]})
    assert unknown.status_code == 422
    assert (await http.post("/api/v1/executions/a/rerun", json={"steps": []})).status_code == 400


async def test_an_execution_is_deleted(http, dsn):
    """Once it has ended; then nobody finds it, and its id is free."""
    await start(http)
    assert (await http.delete("/api/v1/executions/a")).status_code in (409, 422)
    finish(dsn, "a")
    gone = await http.delete("/api/v1/executions/a", params={"reason": "a test"})
    assert (gone.status_code, gone.json()) == (200, {"changed": True})
    assert (await http.get("/api/v1/executions/a")).status_code == 404
    assert (await http.delete("/api/v1/executions/a")).status_code == 404
    await start(http)


async def test_what_is_held_back_goes_on_when_the_rule_ends(guarded, dsn):
    """A rule shows who made it and why; the second end of it is not found."""
    async with calling(guarded, "ann") as http:
        await start(http)
        made = await http.post("/api/v1/pauses", json={"execution_id": "a", "reason": "wait for Bob"})
        assert made.status_code == 201
        rule = made.json()["id"]
        (shown,) = (await http.get("/api/v1/pauses")).json()["pauses"]
        assert shown == {
            "id": rule, "execution_id": "a", "name": None, "step": None, "reason": "wait for Bob", "author": "ann",
            "expires_at": None,
        }  # fmt: skip
        assert (await http.get("/api/v1/executions/a")).json()["status"] == "paused"
        ended = await http.delete(f"/api/v1/pauses/{rule}", params={"reason": "Bob is here"})
        assert (ended.status_code, ended.json()) == (200, {"changed": True})
        assert (await http.get("/api/v1/pauses")).json() == {"pauses": []}
        assert (await http.get("/api/v1/executions/a")).json()["status"] == "scheduled"
        again = await http.delete(f"/api/v1/pauses/{rule}")
        assert (again.status_code, again.json()["type"]) == (404, "urn:zart:problem:pause-not-found")


@pytest.mark.parametrize("expires", ["2h", 7200, "2090-01-01T00:00:00Z"])
async def test_a_rule_may_end_by_itself(http, expires):
    """After a length of time, or at a time."""
    made = await http.post("/api/v1/pauses", json={"name": "f", "step": "charge-*", "expires": expires})
    assert made.status_code == 201
    (shown,) = (await http.get("/api/v1/pauses")).json()["pauses"]
    assert (shown["name"], shown["step"]) == ("f", "charge-*")
    assert shown["expires_at"].endswith("Z")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"name": "f", "expires": "soon"}, 422),
        ({"execution_id": "nobody"}, 404),
        ({"nmae": "f"}, 400),
    ],
)
async def test_a_rule_that_says_nothing_is_refused(http, body, status):
    """Or too little, or of nobody."""
    assert (await http.post("/api/v1/pauses", json=body)).status_code == status


async def test_what_has_ended_cannot_be_held_back(http, dsn):
    """409."""
    await start(http)
    fail(dsn, "a", ValueError("no"))
    refused = await http.post("/api/v1/pauses", json={"execution_id": "a"})
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:zart:problem:execution-finished")


async def test_the_runs_before_are_shown_with_what_came_of_them(http):
    """The texts of failures only to those who may see people's data."""
    await start(http)
    await http.post("/api/v1/executions/a/restart", json={"reason": "typing error"})
    runs = (await http.get("/api/v1/executions/a/runs")).json()["runs"]
    assert [run["status"] for run in runs] == ["scheduled", "scheduled"]
    assert runs[0]["ended_at"] is not None
    assert runs[1]["ended_at"] is None


async def test_what_ended_long_ago_is_pruned(http):
    """First what would go, then it goes; what is live stays."""
    await start(http)
    await start(http, "b")
    await http.post("/api/v1/executions/a/cancel")
    told = await http.post("/api/v1/prune", json={"older_than": "0s", "dry_run": True})
    assert told.json() == {"deleted": 1, "emptied": 0, "records": 0}
    assert (await http.get("/api/v1/executions/a")).status_code == 200
    assert (await http.post("/api/v1/prune", json={"older_than": "0s"})).json()["deleted"] == 1
    assert (await http.get("/api/v1/executions/a")).status_code == 404
    assert (await http.get("/api/v1/executions/b")).status_code == 200
    refused = await http.post("/api/v1/prune", json={"older_than": "2d", "keep_ids": "1d"})
    assert refused.status_code == 422


async def test_workers_are_shown(dsn, http):
    @step("charge")
    async def charge() -> None: ...

    @durable("pay")
    async def pay() -> None:
        await charge()

    assert (await http.get("/api/v1/workers")).json() == {"workers": []}
    async with working(dsn, pay):
        (worker,) = (await http.get("/api/v1/workers")).json()["workers"]
    assert worker["alive"]
    assert worker["functions"] == ["pay"]
    assert worker["queues"] == ["default"]
