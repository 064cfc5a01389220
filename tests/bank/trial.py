"""One trial of the bank, and its verdict."""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import zart
from tests.bank.app import DSN_VARIABLE, SCHEMA, Transfer, bank_transfer
from tests.chaos.server import Server
from tests.support.processes import Crew, WorkerProcess
from tests.support.quiet import errors_alone

APP = "tests.bank.app:registry"
ACCOUNTS, EACH = 20, 1000
OPTIONS = {
    "orphan_timeout": "2s",
    "heartbeat_interval": "200ms",
    "max_recoveries": "1000",
    # Whatever is held when its worker is killed a second time is taken for a suspect, which run one at a time.
    "max_concurrent_tasks": "20",
}
_ENDS_WITHIN = 900.0
_STARTS = 500


async def run(
    directory: Path, *, transfers: int, seed: int, workers: int = 3, kill_every: float = 3.0
) -> dict[str, Any]:
    """The figures of a trial; `problems` must be empty."""
    with errors_alone(
        "psycopg.pool", "zart"
    ):  # connections are lost all the time here: that is what it is about
        return await _run(directory, transfers=transfers, seed=seed, workers=workers, kill_every=kill_every)


async def _run(
    directory: Path, *, transfers: int, seed: int, workers: int, kill_every: float
) -> dict[str, Any]:
    chance = random.Random(seed)
    server = await asyncio.to_thread(Server, directory)
    os.environ[DSN_VARIABLE] = server.dsn
    try:
        await zart.migrate(server.dsn)
        await server.ask(SCHEMA)
        await server.ask("INSERT INTO accounts SELECT n, %s FROM generate_series(1, %s) n", EACH, ACCOUNTS)
        wanted = {f"transfer-{number}": _draw(chance, number) for number in range(transfers)}
        async with Crew(server.dsn, directory, quiet=True) as crew, zart.Client(server.dsn) as client:
            ids = list(wanted)
            for first in range(0, len(ids), _STARTS):
                await client.start_many(
                    bank_transfer, {id: wanted[id] for id in ids[first : first + _STARTS]}
                )
            begun = time.monotonic()
            async with _trouble(
                crew, server, chance, workers=workers, kill_every=kill_every, transfers=transfers
            ) as told:
                await _until_ended(server, transfers)
            seconds = time.monotonic() - begun
            ran = len(crew.effects())
        return {
            "transfers": transfers,
            "seconds": round(seconds, 1),
            "transfers per second": round(transfers / seconds),
            "workers killed": told["killed"],
            "crashes of the database": told["crashed"],
            "functions run": ran,
            "run again": ran - transfers,
            "sum of the accounts": await _value(server, "SELECT sum(amount)::bigint FROM accounts"),
            "problems": await _problems(server, wanted),
        }
    finally:
        del os.environ[DSN_VARIABLE]
        await asyncio.to_thread(server.stop)


def _draw(chance: random.Random, number: int) -> Transfer:
    source, target = chance.sample(range(1, ACCOUNTS + 1), 2)
    return Transfer(source, target, chance.randrange(1, 50), ("async", "thread", "own")[number % 3])


@contextlib.asynccontextmanager
async def _trouble(
    crew: Crew, server: Server, chance: random.Random, *, workers: int, kill_every: float, transfers: int
) -> AsyncIterator[dict[str, int]]:
    """Workers that are killed and replaced all the time; and when half of the transfers are done, a crash."""
    told = {"killed": 0, "crashed": 0}
    environment = {DSN_VARIABLE: server.dsn}

    def begin() -> WorkerProcess:
        return crew.begin(APP, environment=environment, **OPTIONS)

    async def kill() -> None:
        members = [begin() for _ in range(workers)]
        while True:
            # One that has begun to work: on a slow machine nothing would be done else.
            victim = chance.choice(members)
            while victim.exit_code is None and not victim.worker_ids:  # noqa: ASYNC110 (it is in its log)
                await asyncio.sleep(0.02)
            await asyncio.sleep(kill_every * chance.uniform(0.3, 1.7))
            told["killed"] += victim.exit_code is None
            victim.kill()
            members = [begin() if member.exit_code is not None else member for member in members]

    async def crash() -> None:
        while await _value(server, "SELECT count(*) FROM transfers") < transfers / 2:  # noqa: ASYNC110 (as above)
            await asyncio.sleep(0.05)
        await server.restart(away=0.5)
        told["crashed"] += 1

    tasks = [asyncio.create_task(kill()), asyncio.create_task(crash())]
    try:
        yield told
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()


async def _until_ended(server: Server, transfers: int) -> None:
    async with asyncio.timeout(_ENDS_WITHIN):
        while True:
            ended = await _value(server, "SELECT count(*) FROM zart_executions WHERE finished_at IS NOT NULL")
            if ended == transfers:
                return
            await asyncio.sleep(0.2)


async def _value(server: Server, statement: str) -> Any:
    ((value,),) = await server.ask(statement)
    return value


_MUST_BE_EMPTY = {
    "executions that have not completed": "SELECT id, status, failure FROM zart_executions WHERE status <> 'completed'",
    "transfers that were applied more than once": "SELECT id, count(*) FROM transfers GROUP BY id HAVING count(*) > 1",
    "executions whose transfer was not applied": (
        "SELECT e.id FROM zart_executions e WHERE NOT EXISTS (SELECT FROM transfers t WHERE t.id = e.id)"
    ),
    "transfers without a record of their own": (
        "SELECT t.id FROM transfers t WHERE (SELECT count(*) FROM zart_v_steps s WHERE s.execution_id = t.id"
        " AND s.state = 'completed' AND s.seq = 1) <> 1"
    ),
    "accounts that are not the sum of their transfers": (
        f"SELECT a.id FROM accounts a WHERE a.amount <> {EACH}"
        " + (SELECT coalesce(sum(t.amount), 0) FROM transfers t WHERE t.target = a.id)"
        " - (SELECT coalesce(sum(t.amount), 0) FROM transfers t WHERE t.source = a.id)"
    ),
}


async def _problems(server: Server, wanted: dict[str, Transfer]) -> list[str]:
    found = [
        f"{what}: {rows[:5]}{' …' if len(rows) > 5 else ''}"
        for what, statement in _MUST_BE_EMPTY.items()
        if (rows := await server.ask(statement))
    ]
    recorded = await server.ask(
        "SELECT t.id, t.amount, s.result FROM transfers t"
        " JOIN zart_v_steps s ON s.execution_id = t.id AND s.state = 'completed' AND s.seq = 1"
    )
    if wrong := [row for row in recorded if row[1] != row[2]]:
        found.append(f"transfers whose record says another amount: {wrong[:5]}")
    applied = {
        (id, source, target, amount)
        for id, source, target, amount in await server.ask("SELECT * FROM transfers")
    }
    asked = {(id, t.source, t.target, t.amount) for id, t in wanted.items()}
    if applied != asked:
        found.append(f"transfers that nobody asked for, or that are missing: {list(applied ^ asked)[:5]}")
    total = await _value(server, "SELECT sum(amount)::bigint FROM accounts")
    if total != ACCOUNTS * EACH:
        found.append(f"the accounts hold {total} instead of {ACCOUNTS * EACH}")
    return found
