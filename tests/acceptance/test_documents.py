"""Code in the documents that needs a database, and the tables of the SQL reference."""

import re
from pathlib import Path

import psycopg
import pytest

from tests.support.documents import DOCUMENTS, ROOT, blocks, module_of, name, run
from tests.support.keys import use_keys

LEFT_OUT = {
    "docs/how-to/observe.md": pytest.mark.not_in(
        "suspending", "twice", reason="it shows the segments of a trace, and there are more of them"
    )
}
WITH_DATABASE = [
    pytest.param(document, id=name(document), marks=LEFT_OUT.get(name(document), ()))
    for document in DOCUMENTS
    if any(block.mark == "python database" for block in blocks(document))
]


@pytest.mark.parametrize("document", WITH_DATABASE)
async def test_code_that_needs_a_database_runs(
    document: Path, empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All code of the document runs from top to bottom, with a database that nobody has migrated."""
    monkeypatch.setenv("ZART_DATABASE_URL", empty_dsn)
    if any("ZART_PAYLOAD_KEYS" in block.code for block in blocks(document)):
        use_keys(monkeypatch)  # it has keys of its own
    monkeypatch.setenv("ZART_PAYLOAD_KEYS", "")  # a document may set it
    with module_of(document) as module:
        vars(module)["dsn"] = empty_dsn
        for block in blocks(document):
            if block.mark in {"python test", "python database"}:
                await run(block, module)


async def test_the_sql_reference_lists_every_column(dsn: str) -> None:
    """Both views are described column for column."""
    text = (ROOT / "docs/reference/sql.md").read_text()
    for view in ("zart_v_executions", "zart_v_steps"):
        section = text.partition(f"`{view}`")[2].partition("\n\n|")[2].partition("\n\n")[0]
        told = {
            column
            for row in section.splitlines()
            for column in re.findall(r"`(\w+)`", row.partition("|")[0] or row.split("|")[1])
        }
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            cursor = await connection.execute(f"SELECT * FROM {view} LIMIT 0")
            assert cursor.description is not None
            assert told == {column.name for column in cursor.description}


async def test_the_sql_reference_shows_the_functions_as_they_are(dsn: str) -> None:
    """Names, types and defaults of the functions' arguments are those of the database."""
    text = (ROOT / "docs/reference/sql.md").read_text()
    shown = {
        found[1]: " ".join(found[2].split())
        for found in re.finditer(r"^(zart_\w+)\((.*?)\) RETURNS", text, re.MULTILINE | re.DOTALL)
    }
    assert set(shown) == {"zart_start", "zart_offer_event", "zart_cancel", "zart_record_step"}
    long_names = {"integer": "int", "timestamp with time zone": "timestamptz"}
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        for function, arguments in shown.items():
            query = "SELECT pg_get_function_arguments(%s::regproc)"
            row = await (await connection.execute(query, (function,))).fetchone()
            assert row is not None
            real = re.sub(r"::\w+( with time zone)?", "", row[0])
            for long, short in long_names.items():
                real = real.replace(long, short)
            assert arguments == real


async def test_the_queries_of_the_sql_reference_run(dsn: str) -> None:
    """Each SELECT of the reference is accepted by the database, and so is the trigger."""
    text = (ROOT / "docs/reference/sql.md").read_text()
    code = [block.code for block in blocks(ROOT / "docs/reference/sql.md") if block.mark == "sql"]
    runnable = [part for part in code if part.startswith(("SELECT", "CREATE"))]
    assert len(runnable) == 2
    assert "order_placed" in text
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        for part in runnable:
            await connection.execute(part)
