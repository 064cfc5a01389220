"""`zart top`."""

import asyncio
import sys
from typing import Final

import click
import psycopg
from rich.live import Live

from zart._postgres import connections
from zart._postgres.connections import Connection
from zart._postgres.naming import schema_trouble
from zart._postgres.trouble import Trouble, classify
from zart.config import mask_dsn
from zart.durations import parse_duration
from zart_cli.database import Database, database_options
from zart_cli.looking import json_option
from zart_cli.tables import console
from zart_cli.top.drawing import draw
from zart_cli.top.reading import Counters, Frame, read_frame
from zart_cli.values import write_json

_SHORTEST: Final = 0.2


@click.command(short_help="Workers, work and rates, live.")
@click.option(
    "--interval",
    metavar="DURATION",
    default="2s",
    show_default=True,
    help="How often to look; 200ms at least.",
)
@click.option("--once", is_flag=True, help="Print one frame and end; so it is where nobody looks, too.")
@json_option
@database_options
def top(database: Database, interval: str, once: bool, as_json: bool) -> None:
    """Show who works, what is ready, runs and waits, how much happens per second, and what is stuck, until Ctrl-C.

    With --json each frame is a line. It only reads, and asks little however much work there is: beyond two thousand
    nobody counts, and a ~ marks what is told from a part of it.
    """
    pause = max(parse_duration(interval, what="--interval").total_seconds(), _SHORTEST)
    address = database.open().dsn
    looking = _Looking(address, database.schema)
    if once or not (as_json or sys.stdout.isatty()):
        asyncio.run(looking.once(as_json=as_json))
    else:
        asyncio.run(looking.on(pause, as_json=as_json))


class _Looking:
    """One connection, which is opened again when it is lost."""

    def __init__(self, address: str, schema: str) -> None:
        self._address = address
        self._schema = schema
        self._where = mask_dsn(address)
        self._connection: Connection | None = None
        self._before: Counters | None = None

    async def once(self, *, as_json: bool) -> None:
        try:
            frame = await self._frame()
        finally:
            await self._hang_up()
        if as_json:
            write_json(frame)
        else:
            console().print(draw(frame, self._where))

    async def on(self, pause: float, *, as_json: bool) -> None:
        """Until somebody interrupts it. A database that is away is waited for."""
        try:
            frame = await self._frame()
            if as_json:
                while True:
                    write_json(frame)
                    await asyncio.sleep(pause)
                    frame = await self._frame()
            with Live(draw(frame, self._where), console=console(), screen=True, auto_refresh=False) as live:
                while True:
                    await asyncio.sleep(pause)
                    frame, trouble = await self._next(frame)
                    live.update(draw(frame, self._where, trouble), refresh=True)
        finally:
            await self._hang_up()

    async def _next(self, before: Frame) -> tuple[Frame, str | None]:
        """The next frame, or the last one with a word on why there is none."""
        try:
            return await self._frame(), None
        except (psycopg.Error, OSError) as error:
            await self._hang_up()
            return before, " ".join(str(error).split("\n", 1)[0].split())

    async def _frame(self) -> Frame:
        if self._connection is None:
            self._connection = await connections.connect(self._address, application_name="zart top")
        try:
            frame = await read_frame(self._connection, self._schema, self._before)
        except psycopg.Error as error:
            if classify(error) is Trouble.SCHEMA:
                raise schema_trouble(error, self._schema) from error
            raise
        self._before = frame.counters
        return frame

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
