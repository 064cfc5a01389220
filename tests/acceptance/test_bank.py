"""The bank for some seconds: transfers as transactional steps, while workers are killed and the database crashes.

`make bank` does it for five thousand transfers.
"""

from pathlib import Path

import pytest

from tests.bank import trial


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_no_money_is_lost_or_made(open_directory: Path) -> None:
    """Each transfer is applied exactly once, and recorded with it."""
    figures = await trial.run(open_directory, transfers=300, seed=1, workers=2, kill_every=1.5)
    assert figures["problems"] == []
    assert figures["workers killed"] >= 1
    assert figures["crashes of the database"] == 1
