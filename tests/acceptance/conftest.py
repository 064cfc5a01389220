"""Fixtures for tests with real processes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.processes import Crew


@pytest.fixture
async def crew(dsn: str, tmp_path: Path) -> AsyncIterator[Crew]:
    """Starts worker processes on the test's own database; ends them."""
    async with Crew(dsn, tmp_path) as gathered:
        yield gathered
