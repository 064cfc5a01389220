"""Names through every door: each comes back exactly as it was given, or is refused by name; none is ever run as SQL."""

import inspect
import uuid
from typing import Any

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import zart
from tests.fuzz.examples import attempt, examples
from tests.fuzz.stage import Stage
from tests.fuzz.strategies import NASTY_TEXTS, no_texts, texts
from tests.support.databases import Databases
from tests.support.running import fast
from zart import Client, Event, ExecutionNotFound, Registry, Retry, Worker, durable, step
from zart.errors import ZartError
from zart.names import check_name, shorten_name
from zart.template import NameTemplate


def may_be_name(text: str) -> bool:
    """What the documentation says, in other words than the library's."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return False
    return 0 < size <= 200 and not any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in text)


pytestmark = pytest.mark.filterwarnings(
    "ignore:Do not use the `random` module inside strategies"  # the worker beside the tests does
)


# ---------------------------------------------------------------- without a database


@examples(300)
@given(st.one_of(texts, no_texts))
def test_decorators_take_a_name_or_refuse_it(text: Any) -> None:
    """A durable function, a step, an event: by the same rules."""

    async def body(number: int) -> None: ...

    fits = isinstance(text, str) and may_be_name(text)
    made, _ = attempt(lambda: durable(text)(body))
    assert (made is not None and made.name == text) == fits
    event, _ = attempt(Event, text)
    assert (event is not None and event.name == text) == fits
    queued, _ = attempt(lambda: durable("named", queue=text)(body))
    assert (queued is not None) == fits
    stepped, _ = attempt(lambda: step(text, retry=Retry.none())(body))
    if isinstance(text, str) and not set(text) & set("{}"):
        assert (stepped is not None) == fits
    if stepped is not None and fits:
        attempt(Registry, stepped)


@examples(300)
@given(texts, st.one_of(texts, no_texts))
def test_a_template_renders_what_may_be_a_name(template: str, value: Any) -> None:
    """Whatever is in the template and in the value; what is too long is cut, and never meets another."""

    def body(order: object = None) -> None: ...

    for text in (template, f"{template}-{{order}}", "{order}", "{order.real}", "{order[0]}"):
        made, _ = attempt(NameTemplate, text, inspect.signature(body), "it")
        if made is not None:
            name, _ = attempt(made.render, (value,), {})
            assert name is None or check_name(name, "it") == name


@examples(300)
@given(texts)
def test_a_rendered_name_is_cut_to_what_may_be_one(text: str) -> None:
    """Two that begin alike and go on differently stay apart."""
    short, refusal = attempt(shorten_name, text * 3, "it")
    if short is not None:
        assert check_name(short, "it") == short
        other, _ = attempt(shorten_name, text * 3 + "!", "it")
        assert other != short
    else:
        assert not may_be_name(text) or refusal is None


# ---------------------------------------------------------------- through a client and SQL


@examples(60)
@given(texts)
@example("'; DROP TABLE canary; --")
@example("%s%(id)s{}")
def test_a_client_stores_a_text_as_it_is_or_refuses_it(stage: Stage, text: str) -> None:
    """As the name of a function, an id, a queue, a version, an event, a dedup key, a reason, a filter."""
    client = stage.client

    async def through_all_doors() -> None:
        try:
            handle = await client.start(text, text, id=text, queue=text, version=text)
        except ZartError:
            assert not may_be_name(text) or "~" in text
            for ask in (client.status, client.history, client.cancel, client.resume):
                with pytest.raises(ZartError):
                    await ask(text)
            with pytest.raises(ExecutionNotFound):
                await client.offer_event(text, "event")
        else:
            assert may_be_name(text)
            execution = await handle.status()
            assert (execution.id, execution.name, execution.queue, execution.version) == (text,) * 4
            if execution.status == "scheduled":
                first = await client.offer_event(text, text, text, dedup=text)
                assert not await client.offer_event(text, text, text, dedup=text) or not first
                found = {each.id async for each in client.executions(name=text, id_prefix=text, limit=10)}
                assert found == {text}
                assert await client.cancel(text, reason=text)
            assert not await client.cancel(text, reason=text)
            assert (await client.status(text)).status == "cancelled"
            assert any(note.endswith(f": {text}") for note in (await client.history(text)).notes)
        for filters in ({"name": text}, {"id_prefix": text}, {"after": text}, {"status": text}):
            try:
                [each async for each in client.executions(limit=2, **filters)]
            except ZartError as refusal:
                if "status" not in filters and may_be_name(text):
                    raise AssertionError(filters) from refusal
        with pytest.raises(ZartError):
            await client.history(text, run_id=text)

    stage.run(through_all_doors)
    stage.check_objects()


@examples(60)
@given(texts)
@example("'; DROP TABLE canary; --")
@example("%s%(id)s{}")
@example("[")
def test_a_rule_holds_back_what_it_was_given_or_is_refused(stage: Stage, text: str) -> None:
    """As a name, a pattern and a reason: it is in the list of rules as it was given, for as long as it stands."""
    client = stage.client

    async def pause_and_let_go() -> None:
        for what in ({"name": text}, {"step": text}, {"name": "nobody", "step": text, "reason": text}):
            try:
                rule = await client.pause(**what, expires="1h")
            except ZartError:
                assert not may_be_name(text)
                continue
            assert may_be_name(text)
            (made,) = [each for each in await client.pauses() if each.id == rule]
            assert {"name": made.name, "step": made.step, "reason": made.reason} == {
                "name": None, "step": None, "reason": None, **what,
            }  # fmt: skip
            assert await client.unpause(rule, reason="over")
        with pytest.raises(ZartError):
            await client.pause(text)

    stage.run(pause_and_let_go)
    stage.check_objects()


@examples(60)
@given(texts)
@example("'; DROP TABLE canary; --")
@example("%s%(id)s{}")
def test_sql_functions_store_a_text_as_it_is_or_refuse_it(stage: Stage, text: str) -> None:
    """By the same rules as the library's, with the SQLSTATEs that are documented."""
    if "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
        return  # no driver could send it
    id = f"sql-{uuid.uuid4()}"
    states: list[str | None] = []
    statements = [
        "SELECT zart_start(%(text)s, %(id)s, to_jsonb(%(text)s::text), %(text)s, %(text)s)",
        "SELECT zart_start('f', %(text)s)",
        "SELECT zart_offer_event(%(id)s, %(text)s, to_jsonb(%(text)s::text), %(text)s)",
        "SELECT zart_offer_event(%(text)s, 'event')",
        "SELECT zart_cancel(%(id)s, %(text)s)",
        "SELECT zart_cancel(%(text)s)",
    ]
    for statement in statements:
        states.append(_sqlstate(stage, statement, {"text": text, "id": id}))
    assert set(states) <= {None, "22023", "23505", "P0002", "55000"}
    fits = may_be_name(text)
    assert states[0] == (None if fits else "22023")
    if not fits:
        assert states[1] == "22023"
    if fits:
        ((name, queue, version, payload),) = stage.rows(
            "SELECT name, queue, version, payload #>> '{}' FROM zart_v_executions WHERE id = %s", (id,)
        )
        assert (name, queue, version, payload) == (text,) * 4
        assert stage.rows(
            "SELECT name, dedup, payload #>> '{}' FROM zart_events WHERE execution_id = %s", (id,)
        ) == [(text, text, text)]
    stage.check_objects()


def _sqlstate(stage: Stage, statement: str, parameters: dict[str, str]) -> str | None:
    try:
        stage.rows(statement, parameters)
    except psycopg.Error as error:
        return error.sqlstate
    return None


# ---------------------------------------------------------------- while it runs

RUNNABLE = [text for text in NASTY_TEXTS if may_be_name(text)]


def _function(text: str) -> "zart.Durable[[str], list[str]]":
    escaped = text.replace("{", "{{").replace("}", "}}")

    @step(escaped)
    async def echo(given: str) -> str:
        return given

    @durable(text)
    async def body(given: str) -> list[str]:
        async with zart.timeout("1h"):
            one = await echo(given)
            two = await zart.capture(text, lambda: given, type=str)
            three = await zart.wait_for_event(text, str)
        zart.set_data(given)
        return [one, two, three, zart.data(str) or ""]

    return body


def test_functions_steps_captures_and_events_of_any_name_run(databases: Databases, template: str) -> None:
    """Side by side in one worker, each suspended and taken up again under its own name."""
    functions = {text: _function(text) for text in RUNNABLE}
    with databases.database(template) as name, Stage(databases.address(name), *functions.values()) as stage:

        async def run() -> None:
            handles = {
                text: await stage.client.start(fn, text, id=f"run {number}")
                for number, (text, fn) in enumerate(functions.items())
            }
            for text, handle in handles.items():
                await stage.client.offer_event(handle.id, text, text)
            for text, handle in handles.items():
                assert await handle.result(timeout="30s") == [text] * 4
                records = {record.name for record in (await stage.client.history(handle.id)).records}
                assert text in records

        stage.run(run)
        stage.check()
        assert stage.quiet() == []


@pytest.mark.parametrize("schema", ['a"b', "'; DROP TABLE canary; --", "%s{}%(id)s $1", "😀 select"])
def test_tables_may_be_in_a_schema_of_any_name(stage: Stage, schema: str) -> None:
    """Made, used by a worker and a client, and nothing else is touched."""

    @durable("once")
    async def once(number: int) -> int:
        return number + 1

    async def run() -> None:
        await zart.migrate(stage.dsn, schema=schema)
        client = Client(stage.dsn, schema=schema)
        async with client, Worker(client, Registry(once), fast()):
            assert await client.start_and_wait(once, 1, timeout="20s") == 2
            assert (await client.stats()).workers == 1

    stage.run(run)
    statement = psycopg.sql.SQL("SELECT status FROM {}.zart_v_executions").format(
        psycopg.sql.Identifier(schema)
    )
    assert stage.database.execute(statement).fetchall() == [("completed",)]
    stage.database.execute(psycopg.sql.SQL("DROP SCHEMA {} CASCADE").format(psycopg.sql.Identifier(schema)))
    stage.check()
