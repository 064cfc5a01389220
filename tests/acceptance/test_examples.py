"""Every example, run as its reader would, says what it is expected to say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_AN_EXAMPLE = {"__init__", "stage", "world", "demo"}

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
}


def test_every_example_has_its_expected_output() -> None:
    """Whoever adds an example adds what it says to the table above."""
    found = {path.stem for path in (ROOT / "examples").glob("*.py")}
    found |= {path.parent.name for path in (ROOT / "examples").glob("*/__main__.py")}
    assert found - NOT_AN_EXAMPLE == set(EXPECTED)


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
