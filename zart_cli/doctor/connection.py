"""The way to the server: what stands between, whether notifications come, and whether the clocks agree."""

import datetime as dt
from typing import Any, Final
from uuid import uuid4

import psycopg
from psycopg import sql

from zart._postgres import connections
from zart._postgres.pooler import through_pooler
from zart._postgres.queries import load
from zart.config import DIRECT_VARIABLE, mask_dsn
from zart_cli.doctor.finding import Finding, info, ok, warning

_HEARD_WITHIN: Final = 3.0
_CLOCKS_AGREE_WITHIN: Final = dt.timedelta(seconds=2)


async def look_for_pooler(connection: connections.Connection, address: str) -> list[Finding]:
    """Raises psycopg's errors, as the looks below do."""
    pooled = await through_pooler(connection)
    return judge_pooler(pooled=pooled, direct=connections.direct_address(address) != address)


def judge_pooler(*, pooled: bool, direct: bool) -> list[Finding]:
    """Whether a pooler is noticed, and a way past it named."""
    if not pooled:
        return [ok("pooler", "none is noticed")]
    if direct:
        return [
            ok(
                "pooler",
                f"one stands between; {DIRECT_VARIABLE} names the way past it, and nothing is prepared",
            )
        ]
    return [
        warning(
            "pooler",
            "one stands between: no notification comes through it, so workers poll, and nothing is prepared",
            f"set {DIRECT_VARIABLE} to the server's own address, for LISTEN and the heartbeat",
        )
    ]


async def look_at_notifications(address: str) -> list[Finding]:
    """Send one to oneself, the way on which workers and clients listen."""
    direct = connections.direct_address(address)
    try:
        listener = await connections.connect(direct, application_name="zart doctor", prepared=False)
    except (connections.DatabaseUnreachable, psycopg.Error) as error:
        return judge_notifications(
            f"no connection to {mask_dsn(direct)}: {' '.join(str(error).split())[:300]}"
        )
    async with listener:
        try:
            heard = await _hears_itself(listener)
        except psycopg.Error as error:
            return judge_notifications(" ".join(str(error).split())[:300])
    return judge_notifications(None if heard else "none arrives")


async def _hears_itself(listener: connections.Connection) -> bool:
    channel = f"zart_doctor_{uuid4().hex[:12]}"
    await listener.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
    await listener.execute("SELECT pg_notify(%s, '')", (channel,))
    async for _ in listener.notifies(timeout=_HEARD_WITHIN, stop_after=1):
        return True
    return False


def judge_notifications(trouble: str | None) -> list[Finding]:
    """`trouble` says why none arrived."""
    if trouble is None:
        return [ok("notifications", "arrive")]
    return [
        warning(
            "notifications",
            f"{trouble}: workers find work by polling, and results are seen later",
            f"set {DIRECT_VARIABLE} to an address past the pooler, of a server that takes writes",
        )
    ]


async def look_at_clocks(connection: connections.Connection, schema: str) -> list[Finding]:
    """The server's beside this machine's, and durable time beside the server's."""
    before = dt.datetime.now(dt.UTC)
    cursor = await connection.execute(load("doctor", schema)["clocks"], {})
    ((server, shifted),) = await cursor.fetchall()
    after = dt.datetime.now(dt.UTC)
    return judge_clocks(server - (before + (after - before) / 2), after - before, shifted)


def judge_clocks(ahead: dt.timedelta, round_trip: dt.timedelta, shifted: Any) -> list[Finding]:
    """`ahead` is how far the server's clock is before this machine's, give or take half a round trip."""
    found: list[Finding] = []
    milliseconds = ahead.total_seconds() * 1000
    if abs(ahead) > _CLOCKS_AGREE_WITHIN + round_trip / 2:
        found.append(
            info(
                "clock",
                f"the server's is {milliseconds:+,.0f} ms from this machine's: Zart goes by the server's alone, but "
                "times in logs and in at= do not fit together",
                "let both follow a time server (NTP)",
            )
        )
    else:
        found.append(ok("clock", f"the server's is {milliseconds:+,.0f} ms from this machine's"))
    if abs(shifted) > dt.timedelta(seconds=1):
        found.append(
            warning(
                "durable time",
                f"zart_now() is {shifted} from the server's time: somebody has replaced it, as tests do",
                "restore it: the first function in migrations/0001_create_engine.sql",
            )
        )
    return found
