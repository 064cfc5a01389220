"""What goes wrong. Each fault is a coroutine that ends when what it did is over, whatever happens meanwhile.

They are drawn from a deck that is shuffled anew when it is used up, so that all of them happen in a short run, too,
and begin at random intervals, so that they overlap. The seed decides which, when and how, not what comes of it.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.chaos.driver import Driver, Violations
from tests.chaos.gang import ORPHAN_TIMEOUT, Gang, Member
from tests.chaos.load import BLOCK_SECONDS
from tests.chaos.scripts import BY_NAME, TRANSFER, Plan, make
from tests.chaos.server import CONNECTIONS, Server
from tests.support.proxy import Proxy

Random = random.Random


@dataclass(kw_only=True)
class Arena:
    """What there is to break."""

    server: Server
    gang: Gang
    proxies: dict[str, Proxy]
    driver: Driver
    violations: Violations


Fault = Callable[[Arena, Random], Awaitable[str]]
"""Returns what it was, in a few words."""


@dataclass(kw_only=True)
class Window:
    """A fault that happened."""

    kind: str
    began: float
    """Seconds since the epoch, as are the database's times."""
    ended: float
    told: str


# ------------------------------------------------------------ processes


async def kill(arena: Arena, chance: Random) -> str:
    member = arena.gang.pick(chance)
    arena.gang.begin_again(member, "kill")
    member.process.send(signal.SIGKILL)
    return f"process {member.process.pid}"


async def terminate(arena: Arena, chance: Random) -> str:
    member = arena.gang.pick(chance)
    arena.gang.begin_again(member, "sigterm")
    began = time.monotonic()
    member.process.send(signal.SIGTERM)
    while member.process.exit_code is None and time.monotonic() - began < 30:  # noqa: ASYNC110 (it is a process)
        await asyncio.sleep(0.05)
    took = time.monotonic() - began
    if member.process.exit_code is None and not member.stopped:
        arena.violations.add(
            f"process {member.process.pid} did not end within {took:.1f} s of SIGTERM; its log ends with\n"
            f"{member.process.log[-3000:]}"
        )
        member.process.send(signal.SIGKILL)
    return f"process {member.process.pid}, {took:.1f} s"


async def stop_for_long(arena: Arena, chance: Random) -> str:
    """For longer than the orphan timeout: its work goes on elsewhere, and it wakes up as a zombie."""
    return await _stop(arena, chance, ORPHAN_TIMEOUT + chance.uniform(1.0, 3.0))


async def stop_shortly(arena: Arena, chance: Random) -> str:
    """For about as long as the orphan timeout, or less."""
    return await _stop(arena, chance, chance.uniform(0.2, 1.1) * ORPHAN_TIMEOUT)


async def _stop(arena: Arena, chance: Random, seconds: float) -> str:
    member = arena.gang.pick(chance)
    _send(member, signal.SIGSTOP)
    member.stopped = True
    try:
        await asyncio.sleep(seconds)
    finally:
        member.stopped = False
        _send(member, signal.SIGCONT)
    return f"process {member.process.pid}, {seconds:.1f} s"


def _send(member: Member, number: signal.Signals) -> None:
    if member.process.exit_code is None:
        member.process.send(number)


async def block(arena: Arena, chance: Random) -> str:
    """The next step in this process blocks its event loop for longer than the orphan timeout."""
    member = arena.gang.pick(chance)
    order = arena.gang.crew.directory / f"block-{member.process.pid}"
    order.touch()
    began = time.monotonic()
    while order.exists() and time.monotonic() - began < 5 and member.process.exit_code is None:  # noqa: ASYNC110 (a file)
        await asyncio.sleep(0.05)
    if order.exists():
        order.unlink(missing_ok=True)
        return f"process {member.process.pid} had no step to do"
    await asyncio.sleep(BLOCK_SECONDS)
    return f"process {member.process.pid}"


# ------------------------------------------------------------ the server


async def terminate_backends(arena: Arena, chance: Random) -> str:
    """Some sessions, or all."""
    share = chance.choice((0.2, 0.5, 1.0))
    rows = await arena.server.ask(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND application_name LIKE 'zart%%' AND random() < %s",
        share,
    )
    return f"{rows[0][0]} sessions"


async def kill_backend(arena: Arena, chance: Random) -> str:
    """kill -9 of one session's process: the server throws everybody out and recovers."""
    rows = await arena.server.ask(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'zart%' ORDER BY random() LIMIT 1"
    )
    if not rows:
        return "nobody was connected"
    with contextlib.suppress(ProcessLookupError):
        os.kill(rows[0][0], signal.SIGKILL)
    return f"backend {rows[0][0]}"


_one_restart_at_a_time = asyncio.Lock()


async def restart(arena: Arena, chance: Random) -> str:
    """Postgres is stopped as by `-m immediate`, and started again at once or a little later."""
    away = chance.choice((0.0, 0.0, 1.0, ORPHAN_TIMEOUT + 1.0))
    async with _one_restart_at_a_time:
        await arena.server.restart(away)
    return f"away for {away:.1f} s and its recovery"


async def take_all_connections(arena: Arena, chance: Random) -> str:
    """Other clients take every connection that is left, for a second or two; then some lose the one they had."""
    until = time.monotonic() + chance.uniform(1.0, 2.5)
    taken: list[psycopg.AsyncConnection[Any]] = []
    terminated = False
    try:
        while time.monotonic() < until:
            try:
                taken.append(await arena.server.connect(application_name="greedy"))
            except psycopg.OperationalError:
                if not terminated and taken:
                    terminated = True
                    await taken[0].execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE application_name LIKE 'zart%' AND random() < 0.5"
                    )
                await asyncio.sleep(0.01)
    except psycopg.OperationalError:
        pass  # another fault was faster
    finally:
        for connection in taken:
            await connection.close()
    return f"{len(taken)} of {CONNECTIONS}"


# ------------------------------------------------------------ the way there


def _proxy(arena: Arena, chance: Random) -> tuple[str, Proxy]:
    name = chance.choice(sorted(arena.proxies))
    return name, arena.proxies[name]


async def cut(arena: Arena, chance: Random) -> str:
    name, proxy = _proxy(arena, chance)
    proxy.cut()
    return name


async def stall(arena: Arena, chance: Random) -> str:
    name, proxy = _proxy(arena, chance)
    seconds = chance.choice((0.5, 1.5, ORPHAN_TIMEOUT + 1.5))
    proxy.stall()
    try:
        await asyncio.sleep(seconds)
    finally:
        proxy.resume()
    return f"{name}, {seconds:.1f} s"


async def deafen(arena: Arena, chance: Random) -> str:
    name, proxy = _proxy(arena, chance)
    seconds = chance.choice((1.0, ORPHAN_TIMEOUT + 1.5))
    proxy.go_deaf()
    try:
        await asyncio.sleep(seconds)
    finally:
        proxy.hear()
    return f"{name}, {seconds:.1f} s"


async def lose_answers(arena: Arena, chance: Random) -> str:
    """Statements are committed, and their connections break before the answer."""
    name, proxy = _proxy(arena, chance)
    count = chance.randrange(1, 12)
    proxy.answers_to_lose += count
    return await _lost(proxy, f"{count} of {name}")


async def lose_requests(arena: Arena, chance: Random) -> str:
    """Connections break when a statement is on its way to the server."""
    name, proxy = _proxy(arena, chance)
    count = chance.randrange(1, 12)
    proxy.requests_to_lose += count
    return await _lost(proxy, f"{count} of {name}")


async def _lost(proxy: Proxy, told: str) -> str:
    until = time.monotonic() + 5
    while (proxy.answers_to_lose or proxy.requests_to_lose) and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return told


# ------------------------------------------------------------ users


async def hold_transaction(arena: Arena, chance: Random) -> str:
    """A user's transaction starts executions and offers events, stays open for five seconds, and is then committed or
    rolled back. What it started exists then, or never."""
    driver = arena.driver
    plans = [make(TRANSFER, chance, driver.next_number()) for _ in range(3)]
    waiting = [make(BY_NAME["signalled"], chance, driver.next_number())]
    commits = chance.random() < 0.6
    sent = False
    try:
        async with await arena.server.connect(autocommit=False, application_name="a user") as connection:
            for plan in (*plans, *waiting):
                plan.began = time.time()
                await connection.execute(
                    "SELECT zart_start(%s, %s, jsonb_build_object('number', %s::int, 'size', %s::int))",
                    (plan.kind.name, plan.id, plan.job.number, plan.job.size),
                )
            for plan in waiting:
                await connection.execute(
                    "SELECT zart_offer_event(%s, 'signal', '{\"number\": 0}', 'signal-0')", (plan.id,)
                )
            for plan in _some_that_wait(driver, chance):
                # It may have ended by then, and that is refused; the transaction must survive that here.
                with contextlib.suppress(psycopg.errors.ObjectNotInPrerequisiteState):
                    async with connection.transaction():
                        await connection.execute(
                            "SELECT zart_offer_event(%s, 'never-heard', 'null', 'user')", (plan.id,)
                        )
            await asyncio.sleep(5)
            sent = commits
            await (connection.commit() if commits else connection.rollback())
    except psycopg.OperationalError as error:
        for plan in (*plans, *waiting):
            plan.certain = not sent
            if sent:
                driver.plans[plan.id] = plan
        return f"broken off {'in its commit' if sent else 'before its end'}: {str(error).splitlines()[0]}"
    if commits:
        for plan in (*plans, *waiting):
            driver.adopt(plan)
    return "committed" if commits else "rolled back"


def _some_that_wait(driver: Driver, chance: Random) -> list[Plan]:
    waiting = [plan for plan in driver.live.values() if plan.kind.name in ("slept", "signalled", "cancelled")]
    return chance.sample(waiting, min(3, len(waiting)))


FAULTS: dict[str, tuple[Fault, int]] = {
    "kill": (kill, 3),
    "sigterm": (terminate, 2),
    "stop-long": (stop_for_long, 2),
    "stop-short": (stop_shortly, 1),
    "block": (block, 1),
    "terminate-backends": (terminate_backends, 2),
    "kill-backend": (kill_backend, 1),
    "restart": (restart, 1),
    "no-connections": (take_all_connections, 1),
    "cut": (cut, 2),
    "stall": (stall, 1),
    "deaf": (deafen, 1),
    "lose-answers": (lose_answers, 2),
    "lose-requests": (lose_requests, 2),
    "held-transaction": (hold_transaction, 1),
}
"""Each fault, and how many cards it has in the deck."""


class Deck:
    """Draws faults and lets them happen. `windows` are those that are over."""

    def __init__(self, arena: Arena, seed: int, only: list[str], *, pause: float) -> None:
        self.windows: list[Window] = []
        self._arena = arena
        self._chance = Random(f"{seed}/faults")
        self._kinds = [
            name for name, (_, cards) in FAULTS.items() if not only or name in only for _ in range(cards)
        ]
        self._pause = pause

    async def play(self, seconds: float) -> None:
        """Faults for so long; returns when the last of them is over."""
        until = time.monotonic() + seconds
        cards: list[str] = []
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < until:
                if not cards:
                    cards = self._chance.sample(self._kinds, len(self._kinds))
                kind = cards.pop()
                group.create_task(self._happen(kind, Random(self._chance.random())))
                pause = self._chance.expovariate(1 / self._pause)
                await asyncio.sleep(max(min(pause, until - time.monotonic()), 0))

    async def _happen(self, kind: str, chance: Random) -> None:
        began = time.time()
        told = await FAULTS[kind][0](self._arena, chance)
        self.windows.append(Window(kind=kind, began=began, ended=time.time(), told=told))
