"""Every example, run as its reader would, says what it is expected to say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_AN_EXAMPLE = {"__init__", "stage", "world", "demo"}
FOR_PYTEST = {"unit_test_of_a_workflow"}

EXPECTED = {
    "django_shop": """\
an order with an expired card
POST /orders/4711: 402 {'error': 'the card is declined'}
stored: []
started: nothing
the same order with a valid one
  depot     pack order 4711
POST /orders/4711: 201 {'execution': 'order-4711'}
stored: [{'number': 4711, 'item': 'kettle', 'parcel': 'parcel 4711'}]
the result: parcel 4711 is on its way
""",
    "fastapi_orders": """\
an order with an expired card
POST /orders: 402 {'detail': 'the card is declined'}
GET /orders/4711: 404 {'detail': 'there is no such order'}
the same order with a valid one
  depot     pack a kettle
  carrier   fetch parcel 4711
POST /orders: 201 {'execution': 'order-4711'}
the result: parcel 4711 is on its way
GET /orders/4711: 200 {'status': 'completed', 'waiting_for': None}
""",
    "flask_holidays": """\
ann asks for ten days
  mail      may ann be away for 10 days?
POST /holidays/ann: 202 {'id': 'holiday-ann'}
POST /holidays/ann, with other days: 409 {'id': 'holiday-ann'}
POST /holidays/ben/decision: 404 {'error': 'ExecutionNotFound'}
somebody decides
  mail      ann, enjoy it
POST /holidays/ann/decision: 202
the result: enjoy it
POST /holidays/ann/decision: 404 {'error': 'ExecutionFinished'}
""",
    "onboarding": """\
ann signs up; the billing service is about to fail once
  mail      welcome to ann@example.com
  billing   unavailable
  billing   new customer ann@example.com
  cluster   workspace for customer-ann
onboarding-ann is waiting: it holds a row in Postgres and nothing else
ann clicks the link in the mail
  billing   activate customer-ann, verified from 192.0.2.7
done: https://customer-ann.example.com
""",
    "sleep": """\
one worker begins
  kettle    pour assam
the worker is gone, the execution is waiting
another worker goes on
  table     serve assam
done: it drew for 3 seconds
""",
    "parallel_steps": """\
/             3 links
/beer         1 links
/cellar       0 links
/old          failed: /old is not there
/beer/smoked  0 links
5 steps, each of them once: True
""",
    "nightly_fan_out": """\
one of two workers has stopped
2030-01-07: 1000 statements, 1498500 cents
never more than fifty at once: True
""",
    "order_saga": """\
order-1:
  stock     reserve a lamp for order-1
  bank      charge 4200 cents for order-1
  courier   fetch order-1
done: parcel-order-1
order-2, for which no courier comes:
  stock     reserve a chair for order-2
  bank      charge 9900 cents for order-2
  courier   unavailable
  bank      refund what order-2 has paid
  stock     release what order-2 has reserved
undone, and failed: courier does not answer
""",
    "approval": """\
  mail      to the team lead: 120 euros for a trip to Bamberg?
  bank      pay 120 euros
trip-1: approved by the team lead
  mail      to the team lead: 1000000 euros for a trip to the moon?
  mail      to the department: 1000000 euros for a trip to the moon?
  mail      to the board: 1000000 euros for a trip to the moon?
trip-2: refused by the board
""",
    "durable_loop": """\
one worker begins
  mail      newsletter to ann@example.com
  mail      newsletter to bob@example.com
it is gone; another one goes on, and the mail server fails once
  mail      unavailable
  mail      newsletter to cem@example.com
  mail      newsletter to dora@example.com
  mail      newsletter to eve@example.com
done: 5 newsletters sent
""",
    "brewery_finder": """\
  GET /places/96049  200
  GET /breweries/Bamberg  503
  GET /breweries/Bamberg  200
Bamberg: Schlenkerla, since 1405
Bamberg: Klosterbräu, since 1533
Bamberg: Spezial, since 1536
  GET /places/00000  404
failed: the service does not know /places/00000
""",
    "agent_loop": """\
How many people live in Bamberg and Erlangen together?
  model     reads 1 messages
  atlas     population of Bamberg
  atlas     population of Erlangen
  model     reads 5 messages
  adder     unavailable
  adder     80000 + 120000
  model     reads 7 messages
200000 people
2 runs
""",
}


def test_every_example_has_its_expected_output() -> None:
    """Whoever adds an example adds what it says to the table above."""
    found = {path.stem for path in (ROOT / "examples").glob("*.py")}
    found |= {path.parent.name for path in (ROOT / "examples").glob("*/__main__.py")}
    assert found - NOT_AN_EXAMPLE == set(EXPECTED) | FOR_PYTEST


@pytest.mark.slow
@pytest.mark.parametrize("example", EXPECTED)
def test_example_says_what_it_should(example: str) -> None:
    """`make example-NAME` ends with 0, complains of nothing, and prints the expected lines in order."""
    environment = {name: value for name, value in os.environ.items() if name != "ZART_DATABASE_URL"}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"examples.{example}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.stdout == EXPECTED[example], ran.stderr
    assert ran.stderr == ""
    assert ran.returncode == 0


@pytest.mark.parametrize("example", sorted(FOR_PYTEST))
def test_example_for_pytest_passes(example: str) -> None:
    """`pytest examples/NAME.py` runs tests, needs no database, and all of them pass."""
    environment = {name: value for name, value in os.environ.items() if name != "ZART_DATABASE_URL"}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", f"examples/{example}.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout
    assert "skipped" not in ran.stdout
