"""Fixtures for tests with real processes."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.command import Command, Running
from tests.support.processes import Crew


@pytest.fixture
async def crew(dsn: str, tmp_path: Path) -> AsyncIterator[Crew]:
    """Starts worker processes on the test's own database; ends them."""
    async with Crew(dsn, tmp_path) as gathered:
        yield gathered


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that a server's own user may enter, too."""
    directory = Path(tempfile.mkdtemp(prefix="zart-acceptance-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def place(open_directory: Path, request: pytest.FixtureRequest) -> Path:
    """That, with the module's `APP` as app.py."""
    (open_directory / "app.py").write_text(request.module.APP)
    return open_directory


@pytest.fixture
def zart(place: Path, dsn: str) -> Command:
    """The command, in that directory and on the test's own database."""
    return Command(place, dsn)


@pytest.fixture
def worker(zart: Command) -> Iterator[Running]:
    """A worker of that app, which has begun."""
    with zart.running("worker", "--app", "app:registry", "--poll-interval", "100ms") as running:
        running.until(" runs ")
        yield running
