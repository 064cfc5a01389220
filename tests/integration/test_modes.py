"""The modes of the suite: that they do what they say, and a short piece of each in every run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zart
from tests.acceptance.apps.replaying import one, tells, two
from tests.support import modes
from tests.support.plain import plain_values
from tests.support.pooler import find_pgbouncer
from tests.support.processes import Crew
from tests.support.running import query, until_status, working
from tests.support.server import Server
from zart import Client, durable
from zart._postgres import connections
from zart._postgres.pooler import through_pooler

ROOT = Path(__file__).parents[2]
RUNS = {None: 1, "suspending": 3, "twice": 2, "unparked": 1, "unprepared": 1, "pgbouncer": 1, "encrypted": 1}
"""How often a body of two steps is run in each mode."""
PIECE = (
    "tests/integration/test_modes.py",
    "tests/integration/test_identity.py::test_chains_never_swap",
    "tests/integration/test_failing.py::test_a_step_fails_twice_and_then_works",
    "tests/integration/test_failing.py::test_on_failure",
    "tests/integration/test_waiting.py::test_a_buffered_event_wins_over_a_due_timeout",
    "tests/integration/test_journal.py::test_one_poison_record_among_five_hundred_fails_alone",
    "tests/integration/test_claims.py::test_a_worker_claims_only_what_it_has_registered",
)
"""What every run of the suite runs in each mode: about seven seconds."""


@pytest.fixture
def found(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The differences that the mode `twice` finds here, which are expected."""
    path: Path = request.getfixturevalue("differences")
    size = path.stat().st_size
    told: list[str] = []
    yield told
    with path.open() as file:
        file.seek(size)
        told += file.read().splitlines()
    os.truncate(path, size)
    assert told


async def test_bodies_run_as_often_as_the_mode_says(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In workers of this process, and in `zart worker` processes."""
    monkeypatch.setenv("ZART_TEST_PLACE", str(tmp_path))
    expected = ["ran"] * RUNS[modes.current()]
    async with Crew(dsn, tmp_path) as crew:
        async with working(dsn, tells) as client:
            assert await client.start_and_wait(tells, id="here", timeout="20s") == 3
        await crew.worker("tests.acceptance.apps.replaying")
        async with Client(dsn) as client:
            assert await client.start_and_wait(tells, id="there", timeout="20s") == 3
        assert [effect.what for effect in crew.effects("here")] == expected
        assert [effect.what for effect in crew.effects("there")] == expected


async def test_payloads_are_stored_as_the_mode_says(dsn: str, tmp_path: Path) -> None:
    """By clients and workers of this process, and by `zart worker` processes."""
    async with Crew(dsn, tmp_path) as crew, Client(dsn) as client:
        await crew.worker("tests.acceptance.apps.replaying")
        assert await client.start_and_wait(tells, id="there", timeout="20s") == 3
    stored = await query(dsn, "SELECT digest IS NOT NULL, result::text FROM zart_executions")
    assert stored == [(True, "3")] or modes.current() == "encrypted"
    assert bool(plain_values(dsn)) is (modes.current() != "encrypted")


async def test_connections_are_as_the_mode_says(dsn: str) -> None:
    """Through PgBouncer or not, with prepared statements or without."""
    async with await connections.connect(dsn, application_name="test") as connection:
        assert await through_pooler(connection) is (modes.current() == "pgbouncer")
        assert connection.prepare_threshold == modes.prepare_after()


# ------------------------------------------------------------ what the mode `twice` finds

only_twice = pytest.mark.skipif(modes.current() != "twice", reason="only the mode `twice` looks for it")
ends = iter(range(1_000_000))


@durable("another-result")
async def another_result() -> int:
    return await one() + next(ends)


@durable("another-failure")
async def another_failure() -> None:
    await one()
    raise OSError(f"number {next(ends)}")


@durable("fails-or-not")
async def fails_or_not() -> int:
    if next(ends) % 2:
        raise OSError("this time")
    return await one()


@durable("one-call-more")
async def one_call_more() -> int:
    total = await one()
    return total + await two() if next(ends) % 2 else total


@durable("another-order")
async def another_order() -> int:
    for call in (one, two) if next(ends) % 2 else (two, one):
        await call()
    return 3


async def fails_otherwise(data: None, failure: zart.Failure) -> None:
    await one()
    raise OSError(f"number {next(ends)}")


@durable("another-second-body", on_failure=fails_otherwise)
async def another_second_body() -> None:
    raise OSError("always")


@only_twice
@pytest.mark.parametrize(
    "body",
    [another_result, another_failure, fails_or_not, one_call_more, another_order, another_second_body],
    ids=lambda body: body.name,
)
async def test_a_body_that_is_not_deterministic_is_found(dsn: str, found: list[str], body: Any) -> None:
    """Whatever it does otherwise when it is replayed: the execution is blocked."""
    async with working(dsn, body) as client:
        await client.start(body, id="x")
        await until_status(client, "x", "blocked")
        ((failure,),) = await query(dsn, "SELECT failure->>'type' FROM zart_executions WHERE id = 'x'")
        assert failure == "zart.errors.NonDeterminismError"


@only_twice
async def test_it_is_found_in_worker_processes(dsn: str, tmp_path: Path, found: list[str]) -> None:
    """They tell the test, too."""
    async with Crew(dsn, tmp_path) as crew, Client(dsn) as client:
        await crew.worker("tests.acceptance.apps.replaying")
        await client.start("differs", id="x")
        with pytest.raises(zart.ExecutionBlocked, match="came to another end"):
            await client.handle(tells, "x").result(timeout="20s")


# ------------------------------------------------------------ a piece of each


@pytest.mark.skipif(modes.current() is not None, reason="starts the modes itself")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", modes.MODES)
def test_a_piece_of_the_suite_in_each_mode(server: Server, mode: str) -> None:
    """The whole of it is `make test-modes`."""
    if mode == "pgbouncer" and find_pgbouncer() is None:
        pytest.skip("PgBouncer is not installed")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *PIECE],
        cwd=ROOT,
        env=environment | {modes.VARIABLE: mode, "ZART_TEST_DSN": server.dsn},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
