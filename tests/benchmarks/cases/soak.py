"""Case j: ten minutes of steady work, and whether the last of them is as good as the first."""

import asyncio
import itertools
import time
from typing import Any, Final

import anyio
import msgspec
import psycopg
from psycopg.rows import dict_row

import zart
from tests.benchmarks.bench import Bench, Case, note

MINUTES: Final = 10
CALLERS: Final = 100
WAITS: Final = 10
"""One in so many executions waits for an event."""
AT_LEAST: Final = 0.9
"""Of the first minute's executions, in the last."""
TABLES: Final = ("zart_tasks", "zart_workers", "zart_wakeups", "zart_executions", "zart_steps", "zart_events")
_MIB: Final = 1 << 20

Go = zart.Event("go", int)


@zart.step("step")
async def step(number: int) -> int:
    return number + 1


@zart.durable("steady")
async def steady(number: int) -> int:
    for _ in range(5):
        number = await step(number)
    return number


@zart.durable("waiting")
async def waiting(number: int) -> int:
    for _ in range(4):
        number = await step(number)
    return number + await zart.wait_for_event(Go)


class Look(msgspec.Struct, kw_only=True):
    """At the server, between two minutes."""

    at: float
    """Seconds, of a clock that only goes forward."""
    done: int
    """Executions so far."""
    wal: int
    """Bytes written so far."""
    multixacts: int
    """Given out so far."""
    tables: dict[str, dict[str, Any]]
    """By name: `size` and `index_size` in bytes, `live`, `dead`, `updated`, `hot`, `vacuums`."""


def run(bench: Bench) -> None:
    anyio.run(soak, bench, backend_options={"use_uvloop": True})


async def soak(bench: Bench) -> None:
    dsn = bench.database("soak")
    await zart.migrate(dsn)
    minute = max(0.3, 60 * bench.options.scale)
    done = itertools.count()
    finished = 0
    begun, over = asyncio.Event(), asyncio.Event()

    async with zart.Client(dsn) as client, zart.Worker(client, zart.Registry(steady, waiting)):

        async def caller() -> None:
            nonlocal finished
            while not over.is_set():
                await execute(client, next(done))
                finished += 1
                begun.set()

        async with asyncio.TaskGroup() as callers:
            for _ in range(CALLERS):
                callers.create_task(caller())
            await asyncio.sleep(minute)  # warm-up
            await begun.wait()  # a minute may be a moment, see Options.scale
            looks = [await look(dsn, finished)]
            for number in range(MINUTES):
                await asyncio.sleep(max(0.0, looks[0].at + minute * (number + 1) - time.monotonic()))
                looks.append(await look(dsn, finished))
                report(bench, number + 1, looks[-2], looks[-1])
            over.set()
    await check(dsn, finished)
    sum_up(bench, looks)


async def execute(client: zart.Client, number: int) -> None:
    """One execution, from its start to its result."""
    if number % WAITS:
        result = await client.start_and_wait(steady, number)
    else:
        handle = await client.start(waiting, number)
        await client.offer_event(handle.id, Go, 1)
        result = await handle.result()
    if result != number + 5:
        raise AssertionError(f"execution {number} gave {result!r}")


async def look(dsn: str, done: int) -> Look:
    at = time.monotonic()
    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True, row_factory=dict_row)
    async with connection:
        cursor = await connection.execute(
            "SELECT relname AS name, pg_table_size(relid) AS size, pg_indexes_size(relid) AS index_size,"
            " n_live_tup AS live, n_dead_tup AS dead, n_tup_upd AS updated, n_tup_hot_upd AS hot,"
            " vacuum_count + autovacuum_count AS vacuums"
            " FROM pg_stat_user_tables WHERE relname = ANY (%s)",
            (list(TABLES),),
        )
        tables = {row.pop("name"): row for row in await cursor.fetchall()}
        cursor = await connection.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint AS wal,"
            # The age of the first one is the number of those that came after it.
            " mxid_age('1'::xid) AS multixacts"
        )
        row = await cursor.fetchone()
        assert row is not None
    return Look(at=at, done=done, wal=row["wal"], multixacts=row["multixacts"], tables=tables)


def report(bench: Bench, number: int, before: Look, after: Look) -> None:
    """The figures of one minute."""
    setup, seconds = f"minute {number}", after.at - before.at
    executions = after.done - before.done
    tasks = after.tables["zart_tasks"]
    bench.add("j", "Zart", setup, "executions", "executions/s", executions / seconds)
    bench.add(
        "j", "Zart", setup, "WAL for each execution", "bytes", (after.wal - before.wal) / max(1, executions)
    )
    bench.add("j", "Zart", setup, "multixacts", "count", after.multixacts - before.multixacts)
    for name in ("zart_tasks", "zart_workers", "zart_wakeups"):
        table = after.tables[name]
        bench.add("j", "Zart", setup, f"{name}: dead rows", "count", table["dead"])
        bench.add(
            "j", "Zart", setup, f"{name} and its indexes", "MiB", (table["size"] + table["index_size"]) / _MIB
        )
    note(
        f"{setup}: {executions / seconds:.0f} executions/s; zart_tasks {tasks['size'] / _MIB:.1f} MiB and"
        f" {tasks['index_size'] / _MIB:.1f} MiB of indexes, {tasks['dead']} dead, {tasks['vacuums']} vacuums"
    )


def sum_up(bench: Bench, looks: list[Look]) -> None:
    """The figures of all minutes together, and the target."""
    first, last = looks[0], looks[-1]
    for name in TABLES:
        before, after = first.tables[name], last.tables[name]
        grown = (after["size"] + after["index_size"] - before["size"] - before["index_size"]) / _MIB
        bench.add("j", "Zart", "all minutes", f"{name}: growth with its indexes", "MiB", grown)
        bench.add(
            "j", "Zart", "all minutes", f"{name}: vacuums", "count", after["vacuums"] - before["vacuums"]
        )
        updated = after["updated"] - before["updated"]
        if updated:
            share = (after["hot"] - before["hot"]) / updated
            bench.add("j", "Zart", "all minutes", f"{name}: HOT share of its updates", "ratio", share)
    rates = [bench.figure("j", "Zart", f"minute {n}", "executions").median for n in (1, MINUTES)]
    bench.target("j", "executions in the last minute against the first", rates[1] / rates[0], AT_LEAST)


async def check(dsn: str, finished: int) -> None:
    """Everything that was started has ended, and nothing is left of it that is to be done."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute(
            "SELECT (SELECT count(*) FROM zart_tasks), (SELECT count(*) FROM zart_wakeups),"
            " (SELECT count(*) FROM zart_executions WHERE status = 'completed')"
        )
        found = await cursor.fetchone()
    if found != (0, 0, finished):
        raise AssertionError(
            f"tasks, wake-ups and completed executions are {found} after {finished} executions"
        )


CASE = Case(
    letter="j",
    title="A soak of ten minutes",
    long=True,
    told=(
        "One process with a worker and 100 callers on uvloop, each of which runs one execution after "
        "another from its start to its result: five no-op steps, or in one of ten four and a wait for an "
        "event. After one minute of warm-up, ten minutes are counted. Autovacuum runs as the migrations "
        "and PostgreSQL's own settings have it. Dead rows are what the server's statistics say at the end "
        "of a minute."
    ),
    run=run,
)
