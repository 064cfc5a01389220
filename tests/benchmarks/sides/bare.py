"""The raw ceiling: the rows that Zart writes, by bare batched statements, without an engine.

What Zart writes for an execution is learnt from one that it runs: the columns that have a value in its rows of
zart_executions, zart_tasks and zart_steps. Then rows of the same shape are written into the same tables, with their
indexes, checks and triggers, in Zart's own order: a batch of executions with their tasks, their first steps, their
second steps and so on, their ends. A batch is one statement over unnest arrays in a commit of its own, of at most 1,000
rows. The claim of a task is left out: it makes no row.

To pack the arrays is within the clock, as it is for every client; to think of their values is not. The mode of a round
is the number of connections, each in a thread.
"""

import asyncio
import datetime as dt
import importlib.metadata
import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
import psycopg
from psycopg import pq, sql
from psycopg.adapt import Buffer, Dumper

import zart
from tests.benchmarks.rounds import STEPS, answer, in_threads, requests
from tests.benchmarks.sides.with_zart import workflow
from zart._postgres import arrays

BATCH: Final = 1_000
"""Rows of a statement at most."""
_PACKERS: Final[dict[str, Callable[[Iterable[Any]], arrays.Array]]] = {
    "text": arrays.texts,
    "integer": arrays.int4s,
    "bigint": arrays.int8s,
    "boolean": arrays.bools,
    "bytea": arrays.byteas,
    "uuid": arrays.uuids,
    "timestamp with time zone": arrays.times,
    "json": arrays.jsons,
}
Row = dict[str, Any]


class Pattern(msgspec.Struct, kw_only=True, frozen=True):
    """The columns of a table that Zart gives a value, their types, and a row."""

    table: str
    types: dict[str, str]
    row: Row

    def columns(self) -> sql.Composed:
        return sql.SQL(", ").join(map(sql.Identifier, self.types))

    def unnested(self) -> sql.Composed:
        """A placeholder for each column."""
        return sql.SQL("unnest({})").format(
            sql.SQL(", ").join(sql.SQL("%s::{}[]").format(sql.SQL(type)) for type in self.types.values())
        )

    def packed(self, rows: Sequence[Row]) -> list[arrays.Array]:
        return [_PACKERS[type]([row[name] for row in rows]) for name, type in self.types.items()]


class Written(msgspec.Struct, kw_only=True, frozen=True):
    """What Zart writes for one execution."""

    execution: Pattern
    task: Pattern
    steps: list[Pattern]
    end: Pattern


class Work(msgspec.Struct, kw_only=True, frozen=True):
    """The rows of up to 1,000 executions."""

    executions: list[Row]
    tasks: list[Row]
    steps: list[list[Row]]
    ends: list[Row]


class _PackedDumper(Dumper):
    """An array that is packed already is sent as it is."""

    format = pq.Format.BINARY

    def dump(self, obj: Any) -> Buffer:
        packed: bytes = obj
        return packed


def connect(dsn: str) -> psycopg.Connection:
    connection = psycopg.connect(
        dsn, autocommit=True, prepare_threshold=0, options="-c plan_cache_mode=force_generic_plan"
    )
    for kind in arrays.Array.__subclasses__():
        dumper = type(f"{kind.__name__}Dumper", (_PackedDumper,), {"oid": kind.array_oid})
        connection.adapters.register_dumper(kind, dumper)
    return connection


async def learn(dsn: str) -> Written:
    """Run one execution, and look at its rows."""
    await zart.migrate(dsn)
    async with zart.Client(dsn) as client:
        handle = await client.start(workflow, 0)
        with psycopg.connect(dsn, autocommit=True) as connection:
            execution = pattern(connection, "zart_executions", "id = %s", handle.id)[0]
            task = pattern(connection, "zart_tasks", "execution_id = %s", handle.id)[0]
            async with zart.Worker(client, zart.Registry(workflow)):
                await handle.result()
            steps = pattern(connection, "zart_steps", "run_id = %s", execution.row["run_id"], order="seq")
            ended = pattern(connection, "zart_executions", "id = %s", handle.id)[0]
    if len(steps) != STEPS:
        raise AssertionError(f"Zart wrote {len(steps)} journal rows, not {STEPS}")
    changed = {
        name: type
        for name, type in ended.types.items()
        if ended.row[name] != execution.row.get(name) or name == "id"
    }
    return Written(
        execution=execution,
        task=task,
        steps=steps,
        end=Pattern(table=ended.table, types=changed, row=ended.row),
    )


def pattern(
    connection: psycopg.Connection, table: str, where: str, value: Any, *, order: str = "1"
) -> list[Pattern]:
    types: dict[str, str] = dict(
        connection.execute(
            "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute "
            "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            (table,),
        ).fetchall()
    )
    columns = ", ".join(f"{name}::text" if type == "json" else name for name, type in types.items())
    rows = connection.execute(
        f"SELECT {columns} FROM {table} WHERE {where} ORDER BY {order}", (value,)
    ).fetchall()
    return [
        Pattern(
            table=table,
            types={
                name: type
                for (name, type), value in zip(types.items(), row, strict=True)
                if value is not None
            },
            row={
                name: value.encode() if type == "json" else value
                for (name, type), value in zip(types.items(), row, strict=True)
                if value is not None
            },
        )
        for row in rows
    ]


def work(written: Written, executions: int) -> list[Work]:
    """Rows of new executions, in portions that fill a batch."""
    numbers = range(executions)
    return [_portion(written, min(BATCH, executions - first)) for first in numbers[::BATCH]]


_numbers = itertools.count(1)


def _portion(written: Written, size: int) -> Work:
    now = dt.datetime.now(dt.UTC)
    portion = Work(executions=[], tasks=[], steps=[[] for _ in written.steps], ends=[])
    for number in itertools.islice(_numbers, size):
        run_id = uuid.UUID(int=(time.time_ns() << 64) + number)  # in the order of time, as Zart's are
        id, task_id = str(run_id), 10**12 + number
        own = {"id": id, "run_id": run_id, "task_id": task_id, "token": number}
        portion.executions.append(written.execution.row | own)
        portion.tasks.append(written.task.row | own | {"id": task_id, "execution_id": id})
        for pattern, rows in zip(written.steps, portion.steps, strict=True):
            rows.append(
                pattern.row | {"run_id": run_id, "token": number, "started_at": now, "finished_at": now}
            )
        portion.ends.append(written.end.row | own)
    return portion


class Statements:
    """The three that write it all."""

    def __init__(self, written: Written) -> None:
        self._written = written
        self.start = sql.SQL(
            "WITH made AS (INSERT INTO {} ({}) SELECT * FROM {}) INSERT INTO {} ({}) SELECT * FROM {}"
        ).format(
            sql.Identifier(written.execution.table),
            written.execution.columns(),
            written.execution.unnested(),
            sql.Identifier(written.task.table),
            written.task.columns(),
            written.task.unnested(),
        )
        self.steps = [
            sql.SQL("INSERT INTO {} ({}) SELECT * FROM {}").format(
                sql.Identifier(step.table), step.columns(), step.unnested()
            )
            for step in written.steps
        ]
        self.end = sql.SQL(
            "WITH gone AS (DELETE FROM {} t USING unnest(%s::bigint[]) AS d (id) WHERE t.id = d.id) "
            "UPDATE {} e SET {} FROM {} AS u ({}) WHERE e.id = u.id"
        ).format(
            sql.Identifier(written.task.table),
            sql.Identifier(written.end.table),
            sql.SQL(", ").join(
                sql.SQL("{0} = u.{0}").format(sql.Identifier(name))
                for name in written.end.types
                if name != "id"
            ),
            written.end.unnested(),
            written.end.columns(),
        )

    def write(self, connection: psycopg.Connection, portions: Iterable[Work]) -> None:
        """Every row is there and every execution has ended, or it raises AssertionError."""
        written = self._written
        for portion in portions:
            size = len(portion.executions)
            with connection.cursor() as cursor:
                start = written.execution.packed(portion.executions) + written.task.packed(portion.tasks)
                counts = [cursor.execute(self.start, start).rowcount]
                for statement, step, rows in zip(self.steps, written.steps, portion.steps, strict=True):
                    counts.append(cursor.execute(statement, step.packed(rows)).rowcount)
                ids = arrays.int8s([task["id"] for task in portion.tasks])
                counts.append(cursor.execute(self.end, [ids, *written.end.packed(portion.ends)]).rowcount)
            if set(counts) != {size}:
                raise AssertionError(f"statements over {size} rows wrote {counts}")


def seconds(statements: Statements, connections: Sequence[psycopg.Connection], portions: list[Work]) -> float:
    """For all of them, dealt out to these connections."""

    def write(number: int, _: list[BaseException]) -> None:
        statements.write(connections[number], portions[number :: len(connections)])

    return in_threads(len(connections), write)


def main() -> None:
    dsn = os.environ["BENCHMARK_DSN"]
    written = asyncio.run(learn(dsn))
    statements = Statements(written)
    connections = [connect(dsn) for _ in range(2)]
    answer(versions={"psycopg": f"{importlib.metadata.version('psycopg')} ({pq.__impl__})"})
    portions: list[Work] = []
    for request in requests():
        match request:
            case {"do": "prepare", "executions": executions}:
                portions = work(written, executions)
                answer()
            case {"do": "round", "mode": mode}:
                answer(seconds=seconds(statements, connections[: int(mode[0])], portions))
            case _:
                portions = []
                left = connections[0].execute("SELECT count(*) FROM zart_tasks").fetchone()
                if left != (0,):
                    raise AssertionError(f"{left} tasks are left")
                answer()
    for connection in connections:
        connection.close()


if __name__ == "__main__":
    main()
