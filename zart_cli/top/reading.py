"""What one frame of `zart top` shows, read in a handful of statements."""

import datetime as dt
from typing import Any, Final

import msgspec

from zart import WorkerStatus
from zart._postgres.connections import Connection
from zart._postgres.queries import load
from zart.client.reading import read_worker
from zart_cli.lanes import Ready, lane_name

_STUCK_SHOWN: Final = 8
_LANES_SHOWN: Final = 40


class Lane(msgspec.Struct, kw_only=True):
    """A function, or a step that is scheduled, with the work of it."""

    name: str
    served: bool = True
    ready: int = 0
    """2,001 stands for more."""
    running: int = 0
    waiting: int = 0
    """For events, for what they gave away."""
    sleeping: int = 0
    """For events and for a time, whichever comes first, too."""
    oldest: dt.timedelta | None = None
    """For how long its oldest ready work has been ready, where that is known."""


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What the server has counted so far; `at` by its clock."""

    at: dt.datetime
    started: int
    steps: int
    ended: int
    moves: int
    """Claims, suspensions and wake-ups."""


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """The same per second, between two frames."""

    started: float
    steps: float
    ended: float
    moves: float


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """All that is shown at a time."""

    counters: Counters
    rates: Rates | None
    """None in the first one."""
    workers: list[WorkerStatus]
    lanes: list[Lane]
    estimated: bool
    """Running, waiting and sleeping work is told from a part of it, since there is so much."""
    stuck: list[str]
    """What a person should look at, the worst first."""


async def read_frame(connection: Connection, schema: str, before: Counters | None) -> Frame:
    """Read everything once. Raises psycopg's errors."""

    async def rows(file: str, name: str, **parameters: Any) -> list[tuple[Any, ...]]:
        cursor = await connection.execute(load(file, schema)[name], {"schema": schema, **parameters})
        return await cursor.fetchall()

    counters = _counters((await rows("overview", "counters"))[0])
    found = await rows("client", "workers")
    numbers = sorted({lane for row in found for lane in row[-1]})
    names = await rows("client", "lane_names", lanes=numbers) if numbers else []
    workers = [read_worker(row, names) for row in found]
    ready = [Ready(*row) for row in await rows("overview", "ready")]
    live = await rows("overview", "live")
    blocked = await rows("overview", "blocked", limit=_STUCK_SHOWN)
    retrying = await rows("overview", "retrying", limit=_STUCK_SHOWN)
    return Frame(
        counters=counters,
        rates=rates(before, counters) if before is not None else None,
        workers=workers,
        lanes=lanes(ready, live)[:_LANES_SHOWN],
        estimated=any(row[4] < 100 for row in live),
        stuck=stuck(workers, ready, blocked, retrying),
    )


def _counters(row: tuple[Any, ...]) -> Counters:
    at, started, steps, ended, moves = row
    return Counters(at=at, started=started or 0, steps=steps or 0, ended=ended or 0, moves=moves or 0)


def rates(before: Counters, now: Counters) -> Rates | None:
    """What happened per second between two frames; None when the server has begun to count anew, or counted nothing
    in between.
    """
    seconds = (now.at - before.at).total_seconds()
    names = ("started", "steps", "ended", "moves")
    differences = {name: getattr(now, name) - getattr(before, name) for name in names}
    if seconds <= 0 or min(differences.values()) < 0:
        return None
    return Rates(**{name: difference / seconds for name, difference in differences.items()})


def lanes(ready: list[Ready], live: list[tuple[Any, ...]]) -> list[Lane]:
    """Both looks as one list: those with the most to do first."""
    found: dict[str, Lane] = {}
    for row in live:
        queue, name, version, is_step, percent, running, waiting, sleeping, _ = row
        lane = found.setdefault(told := lane_name(queue, name, version, is_step=is_step), Lane(name=told))
        factor = 100 / percent
        lane.running += round(running * factor)
        lane.waiting += round(waiting * factor)
        lane.sleeping += round(sleeping * factor)
    for one in ready:
        lane = found.setdefault(one.told, Lane(name=one.told))
        lane.served, lane.oldest = one.served, one.oldest
        lane.ready += one.tasks
    return sorted(
        found.values(),
        key=lambda lane: (-lane.ready, -lane.running, -lane.waiting - lane.sleeping, lane.name),
    )


def stuck(
    workers: list[WorkerStatus],
    ready: list[Ready],
    blocked: list[tuple[Any, ...]],
    retrying: list[tuple[Any, ...]],
) -> list[str]:
    """In words, one line each."""
    told = [
        f"worker {worker.id} ({worker.host}, process {worker.pid}) does not answer and holds {worker.held}"
        for worker in workers
        if not worker.alive
    ]
    told += [f"no worker serves {lane.told}: {lane.tasks} ready" for lane in ready if not lane.served]
    told += [f"{execution} ({name}) is blocked: zart show {execution}" for execution, name, _, _ in blocked]
    if blocked and blocked[0][3] > len(blocked):
        told.append(f"{blocked[0][3] - len(blocked)} more are blocked: zart list --status blocked")
    told += [
        f"step {key} of {execution} fails again and again: {attempts} attempts"
        for execution, key, attempts, _ in retrying
    ]
    return told
