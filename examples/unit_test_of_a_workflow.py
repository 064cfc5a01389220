"""How a workflow is tested without a database: in memory, in virtual time, with its steps replaced by name.

Run it with `pytest examples/unit_test_of_a_workflow.py`. What it tests are two of the other examples.
"""

import pytest

import zart
import zart.testing
from examples.approval import Decision, Expense, approval
from examples.order_saga import Order, sell

pytestmark = pytest.mark.anyio

TRIP = Expense(what="a trip", euros=120)
NO_MAIL = {"ask": None, "pay": None}
ORDER = Order(number="order-7", item="lamp", cents=4200)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_an_approval_at_once_is_paid() -> None:
    """The first one who is asked decides, and nobody else is bothered."""
    decision = Decision(by="the team lead", approved=True)
    outcome = await zart.testing.run(approval, TRIP, steps=NO_MAIL, events={"decided": [decision]})
    assert outcome.result == "approved by the team lead"
    assert outcome.steps == ["ask", "pay"]
    assert outcome.slept == 0


async def test_whoever_does_not_answer_is_passed_over() -> None:
    """All deadlines pass in no time; what was asked of whom can be looked at."""
    outcome = await zart.testing.run(approval, TRIP, steps=NO_MAIL)
    assert outcome.result == "nobody has decided"
    assert [who for who, _ in outcome.calls["ask"]] == ["the team lead", "the department", "the board"]
    assert outcome.slept == 1 + 2 + 60


async def test_an_order_without_a_courier_is_taken_back() -> None:
    """A replacement may be an exception; undos are steps like others."""
    acts = {"reserve": None, "charge": None, "call-courier": LookupError("no courier today")}
    undos = {"refund": [ConnectionError(), None], "release": None}
    outcome = await zart.testing.run(sell, ORDER, steps={**acts, **undos})
    assert isinstance(outcome.error, LookupError)
    assert outcome.steps == ["reserve", "charge", "call-courier", "refund", "release"]
