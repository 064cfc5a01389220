"""Fail-over to a standby that was behind, under workers that live on: what was forgotten is done again, and no more.

The standby hears nothing for a while, in which records, ends, claims and suspensions are confirmed that it will not
have. What was started before that while is all there: so each of these executions must end as it should, with a journal
without a gap, nothing left, and money that was moved in transactions of steps moved once. That a step runs again whose
record is gone is what such a fail-over costs.
"""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import zart
from tests.chaos import failover
from tests.chaos.trial import tell
from tests.support.processes import Crew
from zart import Client, ExecutionHandle, Registry, durable, step

APP = "tests.chaos.forgetting:registry"
_WORKERS = 3
_EXECUTIONS = 150
_BEHIND = 0.7
"""Seconds in which the standby hears nothing."""
_ENDS_WITHIN = 120.0


@step("compute-{number}", retry="fixed(5, 200ms)")
async def compute(number: int) -> int:
    await asyncio.sleep(random.random() * 0.2)
    if random.random() < 0.1:
        raise RuntimeError("now and then")
    return number * number


@step("deposit-{number}", transaction=True)
async def deposit(number: int) -> int:
    await zart.connection().execute("UPDATE account SET balance = balance + %s", [number])
    await zart.connection().execute("INSERT INTO deposits VALUES (%s)", [number])
    return number


@durable("branches")
async def branches(number: int) -> int:
    """Steps in a row, a wait, steps side by side, one of which another worker may do, and money."""
    total = 0
    for place in range(5):
        total += await compute(number + place)
    await zart.sleep("1s")
    total += sum(await asyncio.gather(*(compute(number * 10 + place) for place in range(3))))
    total += await zart.schedule_step(compute, number)
    return total + await deposit(number)


registry = Registry(branches)


def expected(number: int) -> int:
    squares = sum((number + place) ** 2 for place in range(5)) + number * number + number
    return squares + sum((number * 10 + place) ** 2 for place in range(3))


async def run(directory: Path, *, seconds: float = 60, seed: int = 0) -> dict[str, Any]:
    """Round after round, each with executions of its own."""
    chance = random.Random(seed)
    violations: list[str] = []
    rounds: list[dict[str, Any]] = []
    async with failover.pair(directory) as servers:
        await zart.migrate(servers.dsn)
        await servers.ask("CREATE TABLE account AS SELECT 0::bigint AS balance")
        await servers.ask("CREATE TABLE deposits (number int)")
        async with Client(servers.dsn) as client, Crew(servers.dsn, directory, quiet=True) as crew:
            for _ in range(_WORKERS):
                # A lease that outlasts the fail-over: nobody takes over for another reason.
                crew.begin(APP, orphan_timeout="60s")
            await asyncio.gather(*(worker.until_running() for worker in crew.workers))
            until = time.monotonic() + seconds
            while True:
                first = 1 + len(rounds) * _EXECUTIONS
                rounds.append(await _round(servers, client, first, chance, violations))
                if time.monotonic() > until - 15 or violations:
                    break
                await asyncio.to_thread(servers.add_standby)
                await servers.until_streaming()
            figures = await _judge(servers, len(rounds) * _EXECUTIONS, violations)
            told = "the database has forgotten"
            figures["workers that were told"] = sum(worker.log.count(told) for worker in crew.workers)
            if not figures["workers that were told"]:
                violations.append("nothing was forgotten: the standby was not behind")
            for worker in crew.workers:
                if worker.exit_code is not None or "Traceback" in worker.log:
                    violations.append(f"a worker has ended, or shows a traceback: {worker.log[-2000:]}")
    return {
        "scenario": "fail-over to a standby that was behind",
        "fail-overs": len(rounds),
        "all had ended after seconds": [told["ended after"] for told in rounds],
        "results that clients had been given and that were forgotten": sum(t["given"] for t in rounds),
        **figures,
        "violations": violations,
    }


async def _round(
    servers: failover.Pair, client: Client, first: int, chance: random.Random, violations: list[str]
) -> dict[str, Any]:
    numbers = range(first, first + _EXECUTIONS)
    items = {f"x{number}": number for number in numbers}
    handles = await client.start_many(branches, items)
    waiting = {handle.id: asyncio.create_task(handle.result()) for handle in handles}
    await asyncio.sleep(chance.uniform(0.5, 4.0))
    await servers.until_caught_up()
    servers.fall_behind()
    before = {id for id, task in waiting.items() if task.done()}
    await asyncio.sleep(_BEHIND)
    given = {id for id, task in waiting.items() if task.done()} - before
    began = time.monotonic()
    await asyncio.to_thread(servers.kill_primary)
    await servers.promote()
    for id, number in items.items():
        await _check(client.handle(branches, id), expected(number), violations)
    for task in waiting.values():
        task.cancel()
    await asyncio.wait(waiting.values())
    return {"ended after": round(time.monotonic() - began, 1), "given": len(given)}


async def _check(handle: ExecutionHandle[int], right: int, violations: list[str]) -> None:
    try:
        async with asyncio.timeout(_ENDS_WITHIN):
            while True:
                try:
                    result = await handle.result()
                    break
                except ConnectionError:
                    await asyncio.sleep(0.2)
    except TimeoutError:
        violations.append(f"{handle.id} has not ended after {_ENDS_WITHIN} s")
        return
    except zart.ExecutionFailed as failed:
        violations.append(f"{handle.id} has failed: {failed}")
        return
    if result != right:
        violations.append(f"{handle.id} gave {result}, not {right}")


async def _judge(servers: failover.Pair, count: int, violations: list[str]) -> dict[str, Any]:
    ((balance,),) = await servers.ask("SELECT balance FROM account")
    if balance != sum(range(1, count + 1)):
        violations.append(f"the balance is {balance}, not {sum(range(1, count + 1))}")
    for what, statement in {
        "deposits made twice": "SELECT number FROM deposits GROUP BY number HAVING count(*) > 1",
        "journals with a gap": "SELECT run_id FROM zart_steps GROUP BY run_id HAVING max(seq) <> count(seq)",
        "records under way": "SELECT run_id, name FROM zart_steps WHERE state IN ('started', 'running', 'waiting')",
        "live work left": "SELECT execution_id, state, owner FROM zart_tasks",
    }.items():
        rows = await servers.ask(statement)
        if rows:
            violations.append(f"{what}: {rows[:5]}")
    ((takeovers,),) = await servers.ask("SELECT count(*) FROM zart_history WHERE what = 'takeover'")
    return {"executions": count, "the balance, and as it must be": balance, "takeovers": takeovers}


if __name__ == "__main__":
    tell(run)
