"""Encryption at rest: nothing that a user stores can be read in the database, and all of it by whoever has the keys."""

import asyncio
import datetime as dt
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.types.json import Jsonb

import zart
import zart.sync
from tests.support.keys import key, use_keys
from tests.support.plain import plain_values
from tests.support.running import (
    fast,
    forgetful,
    nothing_left,
    query,
    shift_clock,
    until,
    until_record,
    until_status,
    working,
)
from zart import Client, durable, step
from zart.digest import payload_digest
from zart.encryption import PayloadKeys, Payloads, Place
from zart_cli.doctor.examination import examine

pytestmark = pytest.mark.stores_plain(reason="has keys of its own, or none")

SECRET = "plainly-secret-4711"
ran: list[str] = []
gates: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()
    gates.clear()
    moody.away = False


@pytest.fixture(autouse=True)
def _encrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients and workers have the key k1, unless a test says otherwise."""
    use_keys(monkeypatch, "k1")


async def everything(dsn: str) -> dict[str, str]:
    """All rows of all tables of the schema, as text, by table."""
    tables = await query(dsn, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'zart%'")
    found: dict[str, str] = {}
    for (table,) in tables:
        rows = await query(dsn, f'SELECT t::text, to_jsonb(t)::text FROM "{table}" t')
        found[table] = "\n".join(" ".join(row) for row in rows)
    return found


async def where_it_shows(dsn: str, text: str = SECRET) -> list[str]:
    """The tables that show it: plainly, or in base64 or hexadecimal."""
    written = [text, text.encode().hex(), msgspec.json.encode(text.encode()).decode().strip('"')[:-4]]
    return [table for table, rows in (await everything(dsn)).items() if any(form in rows for form in written)]


# ---------------------------------------------------------------- nothing can be read


class Order(msgspec.Struct):
    item: str
    rounds: int = 0


Paid = zart.Event("paid", Order)


class NoCourier(Exception):
    pass


@step("look-up")
async def look_up(item: str) -> str:
    zart.progress({"looking for": item})
    await until(lambda: gates.get("go", True))
    return f"found {item}"


@step("unsteady", retry="fixed(1, 10ms)")
async def unsteady(item: str) -> str:
    ran.append(item)
    if len(ran) == 1:
        raise ConnectionError(f"{item} does not answer")
    return item


@step("hopeless")
async def hopeless(item: str) -> None:
    raise NoCourier(f"nobody carries {item}", item)


@step("scheduled", retry="fixed(1, 10ms)")
async def scheduled(item: str, number: int) -> str:
    if number == 0 and "scheduled" not in gates:
        gates["scheduled"] = True
        raise ConnectionError(f"{item} does not answer")
    return f"{item} {number}"


@step("carried")
def carried(item: str) -> str:
    return item


@step("written", transaction=True)
async def written(item: str) -> str:
    zart.set_data({"written": item})
    return item


@step("written-elsewhere", transaction=True)
async def written_elsewhere(item: str) -> str:
    return item


@step("recorded", transaction="own")
async def recorded(item: str) -> str:
    async with await psycopg.AsyncConnection.connect(gates["dsn"]) as connection:
        await connection.execute("SELECT zart_record_step(%s, %s)", (zart.step_context().token, Jsonb(item)))
    return item


@step("undo-{number}")
async def undo(number: int, item: str) -> str:
    ran.append(f"undone {item}")
    return item


@durable("child")
async def child(order: Order) -> Order:
    return Order(await look_up(order.item), order.rounds)


@durable("failing-child")
async def failing_child(order: Order) -> None:
    await hopeless(order.item)


@durable("parent", max_retries=1)
async def parent(order: Order) -> dict[str, Any]:
    item = order.item
    if order.rounds == 0:
        await look_up(item)
        zart.continue_as_new(Order(item, 1))
    zart.set_data({"item": item})
    got: dict[str, Any] = {"looked up": await look_up(item), "unsteady": await unsteady(item)}
    try:
        await hopeless(item)
    except NoCourier as error:
        got["hopeless"] = list(error.args)
    got["mapped"] = await zart.map(carried, [f"{item} {number}" for number in range(3)], limit=1)
    got["scheduled"] = list(
        await zart.wait_all(
            zart.schedule_step(scheduled, item, 0), zart.schedule_step(written_elsewhere, item)
        )
    )
    got["child"] = (await child(order)).item
    got["named"] = (await child.with_options(id="named-child")(order)).item
    try:
        await failing_child(order)
    except NoCourier as error:
        got["failing child"] = str(error)
    got["written"] = await written(item)
    got["data"] = zart.data(dict[str, str])
    got["recorded"] = await recorded(item)
    try:
        async with zart.saga() as saga:
            saga.add(undo, 1, item)
            await look_up(item)
            raise LookupError(item)
    except LookupError:
        pass
    got["captured"] = await zart.capture("taken", lambda: f"taken {item}")
    got["paid"] = (await zart.wait_for_event(Paid)).item
    if zart.context().attempt == 1:
        raise ValueError(f"the body fails of {item}")
    return got


async def send(client: Client, id: str) -> None:
    """Start it, and offer what it waits for in both ways that encrypt."""
    await client.start(parent, Order(SECRET), id=id)
    async with await psycopg.AsyncConnection.connect(client.address) as connection:
        await zart.offer_event(id, Paid, Order(SECRET), connection=connection)


EXPECTED = {
    "looked up": f"found {SECRET}",
    "unsteady": SECRET,
    "hopeless": [f"nobody carries {SECRET}", SECRET],
    "mapped": [f"{SECRET} {number}" for number in range(3)],
    "scheduled": [f"{SECRET} 0", SECRET],
    "child": f"found {SECRET}",
    "named": f"found {SECRET}",
    "failing child": str(("nobody carries " + SECRET, SECRET)),
    "written": SECRET,
    "data": {"written": SECRET},
    "recorded": SECRET,
    "captured": f"taken {SECRET}",
    "paid": SECRET,
}


@pytest.mark.parametrize("always_suspend", [False, True], ids=["live", "replayed"])
async def test_nothing_of_it_can_be_read_in_the_database(dsn: str, always_suspend: bool) -> None:
    """Of a function that uses everything, with retries, failures, children and a body that is run again, no table
    shows anything that was the user's, neither in the middle nor at the end; and its values are what they are."""
    gates.update(dsn=dsn, go=False)
    async with working(dsn, parent, child, failing_child, always_suspend=always_suspend) as client:
        await send(client, "x")
        await until_record(client, "x", "look-up", "running")
        await until(lambda: _has_progress(dsn))
        assert await where_it_shows(dsn) == []
        gates["go"] = True
        assert await client.wait_completion("x", timeout="60s", type=dict[str, Any]) == EXPECTED
        history = await client.history("x")
        assert any(SECRET in note for note in history.notes)
    await until(lambda: _forgotten(dsn))  # what zart_record_step was given: the journal has it
    assert await where_it_shows(dsn) == []
    assert plain_values(dsn) == []
    await nothing_left(dsn)
    kept = await everything(dsn)
    assert all(
        '"zart"' in kept[table] for table in ("zart_executions", "zart_steps", "zart_events", "zart_history")
    )
    assert '"zart"' in kept["zart_step_attempts"]
    assert '"zart"' in kept["zart_execution_runs"]


async def _has_progress(dsn: str) -> bool:
    return bool(await query(dsn, "SELECT 1 FROM zart_steps WHERE progress IS NOT NULL"))


async def _forgotten(dsn: str) -> bool:
    return not await query(dsn, "SELECT 1 FROM zart_recorded_steps")


async def test_what_was_looked_for_would_be_found(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same function without keys leaves it in every one of these tables: so the test above can fail."""
    use_keys(monkeypatch)
    gates.update(dsn=dsn)
    async with working(dsn, parent, child, failing_child) as client:
        await send(client, "x")
        assert await client.wait_completion("x", timeout="60s", type=dict[str, Any]) == EXPECTED
    await until(lambda: _forgotten(dsn))
    assert sorted(await where_it_shows(dsn)) == [
        "zart_events", "zart_execution_runs", "zart_executions", "zart_history", "zart_step_attempts", "zart_steps",
    ]  # fmt: skip
    found = plain_values(dsn, most=1000)
    for what in (
        *("the input of execution", "the result of execution", "the failure of execution"),
        *("the input of a run", "the input of step", "the result of step", "the failure of step"),
        *("the progress of step", "the data of step", "the arguments of step", "the failure of an attempt"),
        *("the event", "the note", "the digest of the input of x", "the digest of step"),
    ):
        assert any(value.startswith(what) for value in found), what


# ---------------------------------------------------------------- rotation


@step("first")
async def first(text: str) -> str:
    ran.append("first")
    return f"first of {text}"


@step("second")
async def second(text: str) -> str:
    ran.append("second")
    return f"second after {text}"


@durable("two-steps")
async def two_steps(text: str) -> str:
    told = await first(text)
    event = await zart.wait_for_event("go")
    return f"{await second(told)}, {event}"


@durable("renamed")
async def renamed(order: Order) -> str:
    return order.item


async def key_ids(dsn: str) -> dict[str, set[str]]:
    """With which keys the input, the recorded results and the result of the only execution are encrypted."""
    ((given, result),) = await query(dsn, "SELECT payload ->> 'key', result ->> 'key' FROM zart_executions")
    steps = await query(dsn, "SELECT name, result ->> 'key' FROM zart_steps WHERE result IS NOT NULL")
    return {"input": {given}, "result": {result}, **{name: {id} for name, id in steps}}


@pytest.mark.parametrize("before", [(), ("k1",)], ids=["not encrypted", "with another key"])
async def test_keys_are_changed_in_the_middle_of_an_execution(
    dsn: str, monkeypatch: pytest.MonkeyPatch, before: tuple[str, ...]
) -> None:
    """It is replayed from what was stored before, and goes on with the new key: nothing blocks, no step runs again."""
    use_keys(monkeypatch, *before)
    async with working(dsn, two_steps) as client:
        await client.start(two_steps, "a", id="x")
        await until_status(client, "x", "waiting")
    use_keys(monkeypatch, "k2", *before)
    async with working(dsn, two_steps) as client:
        await client.offer_event("x", "go", "b")
        assert await client.wait_completion("x", timeout="30s") == "second after first of a, b"
    assert ran == ["first", "second"]
    old = {None} if not before else {"k1"}
    new = {"k2"}
    assert await key_ids(dsn) == {"input": old, "first": old, "go": new, "second": new, "result": new}


async def test_a_start_that_is_sent_again_finds_its_execution_after_a_rotation(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal is what is equal when decrypted; another input is a conflict; also by name, and many at once."""
    keyrings: list[tuple[str, ...]] = [(), ("k1",), ("k2", "k1"), ("k3", "k2", "k1")]
    for number, ids in enumerate(keyrings):
        use_keys(monkeypatch, *ids)
        async with Client(dsn) as client:
            await client.start(two_steps, "a", id=f"x{number}")
            await client.start("by-name", {"b": 1, "a": [2.0]}, id=f"n{number}")
    async with Client(dsn) as client:
        for number in range(len(keyrings)):
            assert not (await client.start(two_steps, "a", id=f"x{number}")).created
            assert not (await client.start("two-steps", "a", id=f"x{number}")).created
            assert not (await client.start("by-name", {"a": [2], "b": 1.0}, id=f"n{number}")).created
            with pytest.raises(zart.ExecutionConflict, match="with another input"):
                await client.start(two_steps, "b", id=f"x{number}")
            with pytest.raises(zart.ExecutionConflict, match="with another input"):
                await client.start("by-name", {"a": [2], "b": "1"}, id=f"n{number}")
        handles = await client.start_many(two_steps, {f"x{number}": "a" for number in range(9)})
        assert [handle.created for handle in handles] == [number >= len(keyrings) for number in range(9)]
        with pytest.raises(zart.ExecutionConflict, match="'x1'"):
            await client.start_many(two_steps, {"x0": "a", "x1": "b"})


async def test_what_cannot_be_compared_is_no_conflict(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client without the key does not guess whether an input is equal: it says that it cannot read it."""
    async with Client(dsn) as client:
        await client.start(two_steps, "a", id="x")
    for ids in ((), ("k2",)):
        use_keys(monkeypatch, *ids)
        async with Client(dsn) as client:
            with pytest.raises(zart.PayloadUnreadable, match="'k1'") as raised:
                await client.start(two_steps, "a", id="x")
            assert raised.value.key == "k1"
            assert not (await client.start(two_steps, "a", id="x", on_conflict="return")).created


async def test_a_start_that_is_sent_again_finds_what_was_pruned(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its input is gone, and no hash of what is encrypted compares: the digest that stays does, of a start by name,
    too. Who cannot decrypt that does not guess."""
    async with working(dsn, renamed) as client:
        await client.start(renamed, Order(SECRET, 1), id="x")
        await client.start(renamed, Order(SECRET), id="d")
        await client.start("renamed", {"item": SECRET, "rounds": 0}, id="n")
        await client.start("renamed", {"rounds": 1, "item": "b"}, id="m")
        for id in "xdnm":
            await client.wait_completion(id, timeout="30s")
        assert await where_it_shows(dsn) == []
        await shift_clock(dsn, dt.timedelta(days=2))
        assert (await client.prune(older_than="1d", keep_ids="9d")).emptied == 4
        assert not (await client.start(renamed, Order(SECRET, 1), id="x")).created
        assert not (await client.start("renamed", {"rounds": 1, "item": SECRET}, id="x")).created
        assert not (await client.start("renamed", {"rounds": 0, "item": SECRET}, id="d")).created
        assert not (await client.start("renamed", {"item": SECRET, "rounds": 0.0}, id="n")).created
        assert not (await client.start(renamed, Order(SECRET), id="n")).created
        assert not (await client.start(renamed, Order("b", 1), id="m")).created
        for id, other in (("x", Order("b", 1)), ("n", Order(SECRET, 1)), ("m", Order("b"))):
            with pytest.raises(zart.ExecutionConflict, match="with another input"):
                await client.start(renamed, other, id=id)
            with pytest.raises(zart.ExecutionConflict, match="with another input"):
                await client.start("renamed", {"item": other.item, "rounds": other.rounds}, id=id)
            with pytest.raises(zart.ExecutionConflict, match="with another input"):
                await client.start("renamed", id=id)
    use_keys(monkeypatch)
    async with Client(dsn) as client:
        for target in (renamed, "renamed"):
            with pytest.raises(zart.PayloadUnreadable, match="encrypted"):
                await client.start(target, Order(SECRET, 1), id="x")


async def test_an_input_that_python_cannot_read_is_a_conflict(dsn: str) -> None:
    """SQL may have stored a number that no float holds: it is another input, and no error of the decoder's."""
    await query(dsn, "SELECT zart_start('two-steps', 'x', '1e400')")
    async with Client(dsn) as client:
        for target in (two_steps, "two-steps"):
            with pytest.raises(zart.ExecutionConflict):
                await client.start(target, "a", id="x")


async def test_equal_inputs_and_arguments_cannot_be_recognised(dsn: str) -> None:
    """A digest in the database is neither that of the input, which anybody could try out, nor like that of an equal
    one."""
    async with working(dsn, two_steps) as client:
        await client.start_many(two_steps, {"x": "a", "y": "a"})
        for id in "xy":
            await until_status(client, id, "waiting")
    guessed = payload_digest("a")[1:]
    executions = [digest for (digest,) in await query(dsn, "SELECT digest FROM zart_executions")]
    steps = [digest for (digest,) in await query(dsn, "SELECT digest FROM zart_steps WHERE kind = 'step'")]
    for digests in (executions, steps):
        assert len(set(digests)) == 2
        assert all(guessed not in digest for digest in digests)
    async with Client(dsn) as client:
        assert (await client.status("x")).status == "waiting"


async def test_changed_arguments_are_noticed(dsn: str) -> None:
    """Encrypted digests are compared as any others, and the error tells what was recorded."""

    @durable("two-steps")
    async def changed(text: str) -> str:
        return await first(text + " changed")

    async with working(dsn, two_steps) as client:
        await client.start(two_steps, "a", id="x")
        await until_status(client, "x", "waiting")
    async with working(dsn, changed) as client:
        await client.offer_event("x", "go", "b")
        with pytest.raises(zart.ExecutionBlocked, match=r'recorded with other arguments \(\{"text":"a"\}\)'):
            await client.wait_completion("x", timeout="30s")
    assert ran == ["first"]


# ---------------------------------------------------------------- a missing key


@pytest.mark.parametrize("ids", [(), ("k2",)], ids=["no keys", "another key"])
async def test_an_execution_whose_key_is_missing_is_blocked(
    dsn: str, monkeypatch: pytest.MonkeyPatch, ids: tuple[str, ...]
) -> None:
    """Nothing of it runs, nothing is lost, and the error names the key; with the key `resume` goes on."""
    async with working(dsn, two_steps) as client:
        await client.start(two_steps, "a", id="begun")
        await until_status(client, "begun", "waiting")
    async with Client(dsn) as client:
        await client.start(two_steps, "a", id="new")
        await client.offer_event("begun", "go", "b")
    use_keys(monkeypatch, *ids)
    async with working(dsn, two_steps) as client:
        for id in ("begun", "new"):
            with pytest.raises(zart.ExecutionBlocked, match="encrypted with the key 'k1'"):
                await client.wait_completion(id, timeout="30s")
        # Others are not held up.
        await client.start(two_steps, "c", id="other")
        await until_status(client, "other", "waiting")
        await client.cancel("other")
    assert ran == ["first", "first"]
    use_keys(monkeypatch, "k1", *ids)
    async with working(dsn, two_steps) as client:
        await client.offer_event("new", "go", "b")
        for id in ("begun", "new"):
            assert await client.resume(id)
            assert await client.wait_completion(id, timeout="30s") == "second after first of a, b"
    assert sorted(ran) == ["first", "first", "first", "second", "second"]


async def test_an_event_whose_key_is_missing_blocks_where_it_would_be_heard(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that holds the execution, or keeps its body in memory, does not hand over what it cannot read."""
    async with working(dsn, two_steps) as client:
        await client.start(two_steps, "a", id="x")
        await until_status(client, "x", "waiting")
        use_keys(monkeypatch, "k2")
        async with Client(dsn) as stranger:
            await stranger.offer_event("x", "go", "b")
        with pytest.raises(zart.ExecutionBlocked, match="the payload of event 'go'.*with the key 'k2'"):
            await client.wait_completion("x", timeout="30s")
    use_keys(monkeypatch, "k1", "k2")
    async with working(dsn, two_steps) as client:
        await client.resume("x")
        assert await client.wait_completion("x", timeout="30s") == "second after first of a, b"


@step("gated")
async def gated(text: str) -> str:
    ran.append("gated")
    await until(lambda: gates.get("go"), within=60)
    return text


@durable("gives-away")
async def gives_away(text: str) -> str:
    return await zart.schedule_step(gated, text)


async def test_a_scheduled_step_whose_key_is_missing_waits_for_it(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be blocked and must not fail: it is tried again by and by, and nobody needs to resume anything."""
    async with working(dsn, gives_away, config=fast(shutdown_timeout="10ms")) as client:
        await client.start(gives_away, "a", id="x")
        await until(lambda: ran)
    use_keys(monkeypatch, "k2")
    async with working(dsn, gives_away) as client:

        async def set_aside() -> bool:
            waiting = await query(dsn, "SELECT waiting_for FROM zart_tasks WHERE step_name IS NOT NULL")
            return waiting == [("what decrypts its payloads: the key 'k1'",)]

        await until(set_aside)
        assert (await client.status("x")).status == "waiting"
    assert ran == ["gated"]
    gates["go"] = True
    use_keys(monkeypatch, "k2", "k1")
    async with working(dsn, gives_away) as client:
        await shift_clock(dsn, dt.timedelta(seconds=31))
        assert await client.wait_completion("x", timeout="30s") == "a"
    await nothing_left(dsn)


async def test_a_result_whose_key_is_missing(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`result()` says which key it needs; how an execution ended is told without a key."""
    async with working(dsn, two_steps, failing_child) as client:
        await client.start(two_steps, "a", id="completed")
        await client.offer_event("completed", "go", SECRET)
        await client.start(failing_child, Order(SECRET), id="failed")
        assert SECRET in await client.wait_completion("completed", timeout="30s")
        with pytest.raises(zart.ExecutionFailed, match=SECRET):
            await client.wait_completion("failed", timeout="30s")
    use_keys(monkeypatch)
    async with Client(dsn) as client:
        with pytest.raises(
            zart.PayloadUnreadable, match="the result of execution 'completed'.*'k1'"
        ) as raised:
            await client.wait_completion("completed")
        assert raised.value.key == "k1"
        with pytest.raises(zart.ExecutionFailed, match=r"encrypted \(key k1\).*set ZART_PAYLOAD_KEYS_FILE"):
            await client.wait_completion("failed")
        failed = await client.status("failed")
        assert failed.failure is not None
        assert failed.failure.type == "encrypted (key k1)"
        (record,) = (await client.history("failed")).records
        assert record.failure is not None
        assert record.failure.type == "encrypted (key k1)"


async def test_the_doctor_says_why_an_execution_is_blocked(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key that the reason is encrypted with; without it he names that one."""

    async def findings(check: str) -> list[str]:
        found = await examine(dsn, "public", old_after=dt.timedelta(minutes=5), registry=None)
        return [finding.found for finding in found if finding.check == check]

    async with Client(dsn) as client:
        await client.start(two_steps, "a", id="x")
    use_keys(monkeypatch, "k2")
    async with working(dsn, two_steps) as client:
        await until_status(client, "x", "blocked")
    (told,) = await findings("blocked")
    assert "x (zart.errors.PayloadUnreadable: the input of execution 'x' cannot be read" in told
    use_keys(monkeypatch)
    assert await findings("blocked") == ["1 wait for a person: x (encrypted (key k2))"]
    monkeypatch.setenv("ZART_PAYLOAD_KEYS", "k1 short")
    (told,) = await findings("payload keys")
    assert "line 1" in told
    assert await findings("blocked") == ["1 wait for a person: x (encrypted (key k2))"]


async def test_the_doctor_measures_what_was_given(dsn: str) -> None:
    """The limit is of the plain value: one that takes more room is not nearer to it."""
    async with Client(dsn) as client:
        for id, size in (("x", 700_000), ("y", 900 * 1024 - 2)):
            await client.start(takes_anything, "x" * size, id=id)
    await query(dsn, "ALTER TABLE zart_executions ALTER payload SET STORAGE external")
    found = await examine(dsn, "public", old_after=dt.timedelta(minutes=5), registry=None)
    (told,) = [
        finding.found for finding in found if finding.check == "payload sizes" and finding.level != "ok"
    ]
    assert told == "near the limit of 1,024 KiB: y of takes-anything: 900 KiB"


# ---------------------------------------------------------------- rows that were changed


@durable("echoes")
async def echoes(text: str) -> str:
    told = await first(text)
    await zart.wait_for_event("go")
    return told


async def test_swapped_rows_are_refused(dsn: str) -> None:
    """A result that was put into another row, of another execution or another call, is not taken for its own."""
    async with working(dsn, echoes, config=forgetful()) as client:
        await client.start_many(echoes, {"x": "of x", "y": "of y"})
        for id in "xy":
            await until_status(client, id, "waiting")
    await query(
        dsn,
        """
        UPDATE zart_steps s SET result = o.result
        FROM zart_steps o WHERE o.run_id <> s.run_id AND o.name = 'first' AND s.name = 'first'
        """,
    )
    async with working(dsn, echoes) as client:
        for id in "xy":
            await client.offer_event(id, "go")
            with pytest.raises(
                zart.ExecutionBlocked, match="the result of step 'first'.*belongs into another row"
            ):
                await client.wait_completion(id, timeout="30s")
    assert ran == ["first", "first"]


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ("digest", "the digest of the input of step 'first'"),
        ("arguments", "the first of the arguments of step 'first'"),
    ],
)
async def test_so_are_digests_and_arguments(dsn: str, column: str, told: str) -> None:
    """Every encrypted column is bound to its row."""
    async with working(dsn, echoes, config=forgetful()) as client:
        await client.start_many(echoes, {"x": "a", "y": "a"})
        for id in "xy":
            await until_status(client, id, "waiting")
    await query(
        dsn,
        f"UPDATE zart_steps s SET {column} = o.{column} FROM zart_steps o "
        "WHERE o.run_id <> s.run_id AND o.name = 'first' AND s.name = 'first'",
    )
    async with working(dsn, echoes) as client:
        await client.offer_event("x", "go")
        with pytest.raises(zart.ExecutionBlocked, match=told):
            await client.wait_completion("x", timeout="30s")


async def test_swapped_inputs_results_and_events_are_refused(dsn: str) -> None:
    """The same for what stands beside the journal."""
    async with working(dsn, echoes) as client:
        await client.start_many(echoes, {"x": "of x", "y": "of y"})
        for id in "xy":
            await client.offer_event(id, "go")
            await client.wait_completion(id, timeout="30s")
        swap = "UPDATE zart_executions e SET result = o.result FROM zart_executions o WHERE o.id <> e.id"
        await query(dsn, swap)
        with pytest.raises(zart.PayloadUnreadable, match="belongs into another row"):
            await client.wait_completion("x")
    async with Client(dsn) as client:
        await client.start_many(echoes, {"v": "of v", "w": "of w"})
        await query(
            dsn,
            "UPDATE zart_executions e SET payload = o.payload FROM zart_executions o "
            "WHERE (e.id, o.id) IN (('v', 'w'), ('w', 'v'))",
        )
    async with working(dsn, echoes) as client:
        with pytest.raises(
            zart.ExecutionBlocked, match="the input of execution 'v'.*belongs into another row"
        ):
            await client.wait_completion("v", timeout="30s")


# ---------------------------------------------------------------- what nobody encrypted


@durable("takes-anything")
async def takes_anything(given: Any) -> Any:
    event = await zart.wait_for_event("go", timeout="1d")
    return [given, event, await zart.capture("same", lambda: given)]


def look_alike(execution_id: str) -> Any:
    """A value that is exactly what would be stored of an encrypted one, for this very place."""
    place = Place(execution_id, "input")
    return msgspec.json.decode(Payloads(PayloadKeys({"k1": key("k1")})).encrypt(b'"forged"', place))


@pytest.mark.parametrize("ids", [(), ("k1",)], ids=["plain", "encrypted"])
async def test_values_that_look_like_envelopes_are_values(
    dsn: str, monkeypatch: pytest.MonkeyPatch, ids: tuple[str, ...]
) -> None:
    """From Python and from SQL, with keys and without: what a user stores comes back as it is."""
    forged, other = look_alike("x"), look_alike("y")
    use_keys(monkeypatch, *ids)
    async with working(dsn, takes_anything, config=forgetful()) as client:
        await client.start(takes_anything, forged, id="x")
        await client.offer_event("x", "go", forged)
        await query(dsn, "SELECT zart_start('takes-anything', 'y', %s)", Jsonb(other))
        await query(dsn, "SELECT zart_offer_event('y', 'go', %s)", Jsonb(forged))
        assert await client.wait_completion("x", timeout="30s") == [forged] * 3
        assert await client.wait_completion("y", timeout="30s") == [other, forged, other]


async def test_what_sql_starts_is_read_as_it_is(dsn: str) -> None:
    """A plain input and a plain event from psql are taken as they are; what becomes of them is encrypted."""
    async with working(dsn, two_steps) as client:
        await query(dsn, "SELECT zart_start('two-steps', 'x', '\"a\"')")
        await query(dsn, "SELECT zart_offer_event('x', 'go', '\"b\"')")
        assert await client.wait_completion("x", timeout="30s") == "second after first of a, b"
        assert not (await client.start(two_steps, "a", id="x")).created
        with pytest.raises(zart.ExecutionConflict):
            await client.start(two_steps, "b", id="x")
    new = {"k1"}
    assert await key_ids(dsn) == {"input": {None}, "first": new, "go": new, "second": new, "result": new}


async def test_sql_cannot_compare_an_encrypted_input(dsn: str) -> None:
    """`zart_start` of an id that exists with an encrypted input is a conflict, since SQL has no keys."""
    async with Client(dsn) as client:
        await client.start(two_steps, "a", id="x")
    with pytest.raises(psycopg.errors.UniqueViolation):
        await query(dsn, "SELECT zart_start('two-steps', 'x', '\"a\"')")


# ---------------------------------------------------------------- from outside


async def test_starts_and_events_in_the_callers_transaction(dsn: str) -> None:
    """On a connection of the caller's, async or not, they are encrypted as a client's are."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await zart.start(two_steps, SECRET, id="x", connection=connection)
        await zart.offer_event("x", "go", SECRET, connection=connection)

    def in_thread() -> None:
        with psycopg.connect(dsn) as lent:
            zart.sync.start(two_steps, SECRET, id="y", connection=lent)
            zart.sync.offer_event("y", "go", SECRET, connection=lent)
            zart.sync.start(two_steps, SECRET, id="y", connection=lent)  # again: it is equal

    await asyncio.to_thread(in_thread)
    assert await where_it_shows(dsn) == []
    async with working(dsn, two_steps) as client:
        for id in "xy":
            assert SECRET in await client.wait_completion(id, timeout="30s")


async def test_the_views_show_the_envelope(dsn: str) -> None:
    """Reading by SQL needs no key, and shows which key a value needs."""
    async with working(dsn, two_steps) as client:
        await client.start(two_steps, "a", id="x")
        await until_status(client, "x", "waiting")
    ((payload,),) = await query(dsn, "SELECT payload FROM zart_v_executions")
    assert (payload["zart"], payload["key"]) == (1, "k1")
    ((result,),) = await query(dsn, "SELECT result FROM zart_v_steps WHERE name = 'first'")
    assert (result["zart"], result["key"]) == (1, "k1")


async def test_the_largest_value_is_measured_before_it_is_encrypted(dsn: str) -> None:
    """A mebibyte of JSON may be stored, although it takes more room then."""
    text = "x" * ((1 << 20) - 2)
    async with working(dsn, takes_anything) as client:
        await client.start(takes_anything, text, id="x")
        await until_status(client, "x", "waiting")
        with pytest.raises(zart.SerializationError, match="1,048,576 is the most"):
            await client.start(takes_anything, text + "x", id="y")
    ((size,),) = await query(dsn, "SELECT octet_length(payload::text) FROM zart_executions WHERE id = 'x'")
    assert 4 / 3 * len(text) < size < 1.34 * len(text)


# ---------------------------------------------------------------- a codec that fails


class Moody:
    """Encrypts with k1 unless it is `away`."""

    def __init__(self) -> None:
        self.keys = PayloadKeys({"k1": key("k1")})
        self.away = False
        self.asked = 0

    def encode(self, plain: bytes, associated: bytes, /) -> bytes:
        self._answer()
        return self.keys.encode(plain, associated)

    def decode(self, data: bytes, associated: bytes, /) -> bytes:
        self._answer()
        return self.keys.decode(data, associated)

    def _answer(self) -> None:
        if self.away:
            self.asked += 1
            raise ConnectionError("the key server does not answer")


moody = Moody()


@step("plainly")
async def plainly(text: str) -> str:
    moody.away = True
    return text


@step("in-transaction", transaction=True)
async def in_transaction(text: str) -> str:
    ran.append("in-transaction")
    moody.away = "failed" not in gates
    return text


@durable("moody")
async def with_moods(text: str) -> str:
    told = await plainly(text)
    return await in_transaction(told)


async def test_a_codec_that_fails_is_asked_again(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fails of it: a record waits until it can be encrypted, and a step in a transaction is done again."""
    use_keys(monkeypatch)
    monkeypatch.setenv("ZART_PAYLOAD_CODEC", f"{__name__}:moody")
    monkeypatch.setattr(moody, "asked", 0)
    async with working(dsn, with_moods) as client:
        await client.start(with_moods, "a", id="x")
        await until(lambda: moody.asked > 2)
        moody.away, moody.asked = False, 0
        await until(lambda: moody.asked > 2)
        gates["failed"] = True
        moody.away = False
        assert await client.wait_completion("x", timeout="30s") == "a"
    assert ran.count("in-transaction") > 1


async def test_a_codec_that_cannot_read_now_is_asked_again_later(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it calls a passing trouble (an OSError) blocks nothing: the execution waits, and is tried again."""
    use_keys(monkeypatch)
    monkeypatch.setenv("ZART_PAYLOAD_CODEC", f"{__name__}:moody")
    async with Client(dsn) as client:
        await client.start(echoes, "a", id="x")
    moody.away = True
    async with working(dsn, echoes) as client:

        async def set_aside() -> bool:
            return await query(dsn, "SELECT waiting_for FROM zart_tasks") == [("what decrypts its payloads",)]

        await until(set_aside)
        moody.away = False
        await shift_clock(dsn, dt.timedelta(seconds=31))
        await client.offer_event("x", "go")
        assert await client.wait_completion("x", timeout="30s") == "first of a"
