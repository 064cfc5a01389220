"""Workflows of the corpus that somebody repairs while a rule holds them back."""

import zart
from tests.crashes.repairing import charge
from tests.crashes.repairs import Restart, RetryStep
from tests.crashes.straight import do
from tests.crashes.workflow import Offer, Pause, Unpause, Workflow, returns
from zart import durable


@durable("restarted-in-a-pause")
async def restarted_in_a_pause(run: int) -> str:
    """Another run is begun under the rule, and goes on once that has ended."""
    before = await do(f"before {run}")
    return await do(f"after {run}", before + await zart.wait_for_event("approved", str))


@durable("retried-in-a-pause")
async def retried_in_a_pause() -> str:
    """A failed step is to be tried again while a rule, which ends by itself, holds the execution back."""
    before = await do("before")
    try:
        told = await charge()
    except ConnectionError:
        told = await zart.wait_for_event("paid", str)
    return await do("after", before + told)


WORKFLOWS = (
    Workflow(
        durable=restarted_in_a_pause,
        data=1,
        happens=(
            Pause(once="waiting"),
            Restart(2, once="paused"),
            Unpause(),
            Offer("approved", " yes ", once="before 2"),
        ),
        expect=returns("before 2 yes after 2"),
        chains=(("before 1", "before 2", "after 2"),),
    ),
    Workflow(
        durable=retried_in_a_pause,
        happens=(Pause(once="waiting", expires=0.3), RetryStep("charge", once="waiting")),
        expect=returns("beforecharged2 after"),
        chains=(("before", "charge 1.1", "charge 2.1", "after"), ("before", "charge 1.2", "charge 2.1")),
    ),
)
