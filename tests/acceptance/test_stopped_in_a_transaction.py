"""A process that is stopped (SIGSTOP) in the middle of a step's transaction, with all the locks that it has there."""

import signal
from pathlib import Path

import pytest

from tests.acceptance.apps.banking import stopped, stopped_itself
from tests.support.processes import Crew
from tests.support.running import query
from zart import Client

APP = "tests.acceptance.apps.banking:registry"


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True], ids=["before its record", "after its own record"])
async def test_others_take_over_from_a_stopped_process(dsn: str, tmp_path: Path, *, own: bool) -> None:
    """The database ends its transaction after orphan_timeout: then its row and its fence are free, and another worker
    does it. When the first one goes on, nothing of it is committed."""
    await query(dsn, "CREATE TABLE accounts (amount int)")
    await query(dsn, "INSERT INTO accounts VALUES (100)")
    async with Crew(dsn, tmp_path) as crew, Client(dsn) as client:
        first = await crew.worker(APP)
        if own:
            await client.start(stopped_itself, dsn, id="s")
        else:
            await client.start(stopped, id="s")
        await crew.until_done("s", "transfer")
        first.send(signal.SIGSTOP)
        second = await crew.worker(APP)
        assert await client.wait_completion("s", timeout="30s") == second.pid
        first.send(signal.SIGCONT)
        await first.until_logged("was taken for dead")
        assert await query(dsn, "SELECT amount FROM accounts") == [(99,)]
