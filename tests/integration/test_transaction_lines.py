"""What goes over the connection of a step's transaction."""

import datetime as dt
from pathlib import Path
from typing import Any

import psycopg
import pytest

from zart._engine.transaction_lines import AsyncLine, SyncLine

VALUES = {
    "text": "it's \\ ; %s {name} Ω 你好",
    "bytes": b"\x00\xff'\\",
    "number": 7,
    "json": '{"a": "\\u00e4\\"\\\\;"}',
    "when": dt.datetime(2026, 1, 2, 3, 4, 5, 678901, dt.UTC),
    "nothing": None,
}
RECORD = (
    b"INSERT INTO records SELECT %(text)s::text, %(bytes)s::bytea, %(number)s::int, %(json)s::text::json,"
    b" %(when)s::timestamptz, %(nothing)s::text"
)


def _line(dsn: str, kind: str) -> AsyncLine | SyncLine:
    if kind == "async":

        async def connect() -> psycopg.AsyncConnection[Any]:
            return await psycopg.AsyncConnection.connect(dsn, autocommit=True)

        return AsyncLine(connect)
    return SyncLine(lambda: psycopg.connect(dsn, autocommit=True))


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_record_and_its_commit_are_one_message(direct_dsn: str, tmp_path: Path, kind: str) -> None:
    """However far it gets, the server waits for nothing with the record done and the COMMIT to come. The values arrive
    as they are."""
    with psycopg.connect(direct_dsn, autocommit=True) as database:
        database.execute(
            "CREATE TABLE records (text text, bytes bytea, number int, json json, at timestamptz, nothing text)"
        )
        line = _line(direct_dsn, kind)
        await line.begin(60_000)
        sent: list[str] = []
        with (tmp_path / "trace").open("w+") as trace:
            libpq = line.connection.pgconn
            libpq.trace(trace.fileno())
            await line.commit(RECORD, VALUES, lambda: sent.append("sent"))
            libpq.untrace()
            trace.seek(0)
            messages = [line.split("\t") for line in trace]
        assert [message[3] for message in messages if message[1] == "F"] == ["Query"]
        assert sent == ["sent"]
        assert database.execute(
            "SELECT text, bytes, number, json::text, at, nothing FROM records"
        ).fetchall() == [tuple(VALUES.values())]
        await line.begin(60_000)
        with pytest.raises(psycopg.errors.DivisionByZero):
            await line.commit(b"SELECT 1 / %(number)s", {"number": 0}, lambda: None)
        assert line.record_failed
        await line.begin(60_000)
        await line.roll_back()
        line.abandon()
