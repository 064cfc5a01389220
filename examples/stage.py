"""What every example stands on: a migrated database, by default a new one that is gone afterwards.

Set `ZART_DATABASE_URL` to run the examples on a server of yours, such as that of `compose.yaml`.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal

import zart
import zart.sync
from zart._postgres import embedded


@contextlib.asynccontextmanager
async def stage() -> AsyncIterator[zart.Client]:
    """A client of a migrated database."""
    with contextlib.ExitStack() as stack:
        given = os.environ.get("ZART_DATABASE_URL")
        dsn = given or await asyncio.to_thread(stack.enter_context, database())
        await zart.migrate(dsn)
        async with zart.Client(dsn) as client:
            yield client


@contextlib.contextmanager
def stage_for_threads() -> Iterator[None]:
    """A migrated database for code that is not async; `ZART_DATABASE_URL` says where."""
    with contextlib.ExitStack() as stack:
        if "ZART_DATABASE_URL" not in os.environ:
            os.environ["ZART_DATABASE_URL"] = stack.enter_context(database())
        zart.sync.migrate()
        yield


@contextlib.contextmanager
def worker_thread(registry: zart.Registry) -> Iterator[None]:
    """A worker in a thread of its own. In production it is a process: `zart worker`."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(zart.Worker(None, registry)):
        yield


@contextlib.contextmanager
def database() -> Iterator[str]:
    """The DSN of an embedded server in a temporary directory; it stops, and its data goes, at the end."""
    with tempfile.TemporaryDirectory(prefix="zart-example-") as directory:
        Path(directory).chmod(0o755)  # PostgreSQL never runs as root: for root it runs as another user
        server = embedded.start(Path(directory))
        try:
            yield server.dsn()
        finally:
            server.stop()


async def waits_for(handle: zart.ExecutionHandle[Any], what: str) -> zart.Execution:
    """Look at an execution until it waits for this, and nothing else."""
    while True:
        execution = await handle.status()
        if execution.status == "waiting" and what in (execution.waiting_for or ""):
            return execution
        if execution.finished_at is not None:
            raise RuntimeError(f"{execution.id} is {execution.status}, and never waited for {what}")
        await asyncio.sleep(0.05)
