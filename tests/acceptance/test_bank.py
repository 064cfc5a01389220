"""The bank for some seconds: transfers as transactional steps, while workers are killed and the database crashes.

`make bank` does it for five thousand transfers.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bank import trial


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the server's user may enter, too."""
    directory = Path(tempfile.mkdtemp(prefix="zart-bank-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_no_money_is_lost_or_made(place: Path) -> None:
    """Each transfer is applied exactly once, and recorded with it."""
    figures = await trial.run(place, transfers=300, seed=1, workers=2, kill_every=1.5)
    assert figures["problems"] == []
    assert figures["workers killed"] >= 1
    assert figures["crashes of the database"] == 1
