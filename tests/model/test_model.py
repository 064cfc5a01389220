"""The tables go the way of the model, whatever happens in whatever order."""

from collections.abc import Iterator

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import Machine
from tests.model.settings import profile
from tests.model.stage import Stage

pytestmark = pytest.mark.not_in(
    "encrypted", reason="works the tables in the engine's place, which encrypts on the way"
)


@pytest.fixture
def stage(dsn: str) -> Iterator[Stage]:
    made = Stage(dsn)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_tables_go_the_way_of_the_model(stage: Stage) -> None:
    """Starts, claims, records, events, timers, cancels, takeovers, retries, resumes, transactions left open: after each
    of them every table is what the model says, and in the end everything comes to its end."""
    Machine.stage = stage
    run_state_machine_as_test(Machine, settings=profile(30, steps=50, derandomize=True))
    assert stage.steps > 1000
