"""A fan-out of 100, 1,000 and 10,000 on two worker processes, and one of 10,000 of which one worker is killed.

    make fan-out

For each it prints seconds, and for each piece of work: milliseconds, statements, commits and bytes of WAL, counted by
the server. If the work is linear, none of these grows with the width. It writes `build/bench/fan-out.json`. The server
is the embedded one with PostgreSQL's own settings, so every commit reaches the disk.
"""

import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio

import zart
from tests.benchmarks.fan_out_app import children, mapped, scheduled
from tests.support.processes import Crew
from tests.support.running import query, until
from zart._postgres import embedded
from zart.durable import Durable

WIDTHS = (100, 1_000, 10_000)
OUT = Path("build/bench/fan-out.json")
_SETTINGS = {
    "max_connections": "100",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "top",
    "pg_stat_statements.track_utility": "off",
}
_COUNTS = """
    SELECT (SELECT sum(calls) FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat%'),
        (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()),
        (SELECT wal_bytes FROM pg_stat_wal)
"""
_WRONG = """
    SELECT (SELECT count(*) FROM zart_tasks), (SELECT count(*) FROM zart_wakeups),
        (SELECT count(*) - count(DISTINCT (s.path, s.name, s.occurrence, s.kind)) FROM zart_steps s
            JOIN zart_executions e ON e.run_id = s.run_id WHERE e.id = %s),
        (SELECT count(*) FROM zart_steps s JOIN zart_executions e ON e.run_id = s.run_id
            WHERE e.id = %s AND s.state = 'completed' AND s.seq IS NOT NULL)
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="zart-bench-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)  # as root the server runs as another user
        running = embedded.start(Path(directory) / "server", settings=_SETTINGS)
        try:
            rows = anyio.run(measure, running.dsn(), Path(directory))
        finally:
            running.stop()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=2) + "\n")
    show(rows)
    sys.exit(any(row["wrong"] for row in rows))


async def measure(dsn: str, directory: Path) -> list[dict[str, Any]]:
    await query(dsn, "CREATE EXTENSION pg_stat_statements")
    await zart.migrate(dsn)
    crew = Crew(dsn, directory, quiet=True)
    rows: list[dict[str, Any]] = []
    try:
        for _ in range(2):
            crew.begin("tests.benchmarks.fan_out_app:registry")
        for worker in crew.workers:
            await worker.until_logged(" runs ", within=60)
        async with zart.Client(dsn) as client:
            for fn in (scheduled, mapped, children):
                await client.start_and_wait(fn, 50, timeout="60s")  # connections, plans, imports
                rows += [await fan_out(client, fn, width) for width in WIDTHS]
            rows.append(await fan_out(client, scheduled, WIDTHS[-1], crew=crew))
    finally:
        for worker in crew.workers:
            if worker.exit_code is None:
                worker.send(signal.SIGKILL)
    return rows


async def fan_out(
    client: zart.Client, fn: Durable[[int], int], width: int, crew: Crew | None = None
) -> dict[str, Any]:
    """One execution; with a crew its first worker is killed when half of the work is done."""
    id = f"{fn.name}-{width}" + ("-killed" if crew is not None else "")
    before = (await query(client.address, _COUNTS))[0]
    begun = time.monotonic()
    handle = await client.start(fn, width, id=id)
    if crew is not None:

        async def half_done() -> bool:
            count = "SELECT count(*) FROM zart_steps WHERE state = 'completed' AND run_id = %s"
            ((run_id,),) = await query(client.address, "SELECT run_id FROM zart_executions WHERE id = %s", id)
            return (await query(client.address, count, run_id))[0][0] >= width // 2

        await until(half_done, "half of the work", within=300)
        crew.workers[0].kill()
    result = await handle.result(timeout="600s")
    seconds = time.monotonic() - begun
    after = (await query(client.address, _COUNTS))[0]
    statements, commits, wal = (float(b - a) for a, b in zip(before, after, strict=True))
    ((tasks, wakeups, twice, recorded),) = await query(client.address, _WRONG, id, id)
    wrong = [
        told
        for told, is_wrong in (
            (f"the sum is {result}", result != sum(n * n for n in range(width))),
            (f"{tasks} tasks and {wakeups} wake-ups are left", tasks or wakeups),
            (f"{twice} records are there twice", twice),
            (f"{recorded} are recorded", recorded != width),
        )
        if is_wrong
    ]
    row = {
        "what": fn.name + (", one of two workers killed" if crew is not None else ""),
        "width": width,
        "seconds": round(seconds, 2),
        "milliseconds each": round(seconds * 1000 / width, 3),
        "statements each": round(statements / width, 3),
        "commits each": round(commits / width, 3),
        "WAL bytes each": round(wal / width),
        "wrong": wrong,
    }
    print(row, file=sys.stderr, flush=True)
    return row


def show(rows: list[dict[str, Any]]) -> None:
    heads = [head for head in rows[0] if head != "wrong"]
    widths = [max(len(head), *(len(str(row[head])) for row in rows)) for head in heads]
    for line in [dict(zip(heads, heads, strict=True)), *rows]:
        print("  ".join(f"{line[head]!s:>{width}}" for head, width in zip(heads, widths, strict=True)))
    for row in rows:
        for told in row["wrong"]:
            print(f"WRONG: {row['what']} {row['width']}: {told}")


if __name__ == "__main__":
    main()
