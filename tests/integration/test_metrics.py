"""Metrics of what really happens."""

import pytest
from prometheus_client import CollectorRegistry

import zart
from tests.support.running import forgetful, until, until_status, working
from zart import durable, step, telemetry

pytestmark = pytest.mark.not_in("twice", reason="each body comes to its end twice there")


@step("charge-{number}", retry="fixed(1, 10ms)")
async def charge(number: int) -> int:
    if zart.step_context().step_attempt == 1:
        raise ConnectionError
    return number


@durable("metered", queue="till")
async def metered(number: int) -> int:
    charged = await charge(number)
    await zart.wait_for_event("paid")
    return charged


async def test_an_execution_is_counted_from_start_to_end(dsn: str) -> None:
    """Started, claimed twice, an attempt that failed and one that did not, suspended, ended; claims and commits too."""
    registry = CollectorRegistry()

    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(name, labels) or 0

    with telemetry.prometheus(registry):
        async with working(dsn, metered, config=forgetful()) as client:
            await client.start(metered, 7, id="x")
            await until_status(client, "x", "waiting")
            assert value("zart_worker_slots") == 100
            await client.offer_event("x", "paid")
            await until_status(client, "x", "completed")
            ended = {"function": "metered", "queue": "till", "outcome": "completed"}
            await until(lambda: value("zart_executions_ended_total", **ended) == 1, "the end")
        function = {"function": "metered", "queue": "till"}
        charged = {"function": "metered", "step": "charge-{number}"}
        assert value("zart_executions_started_total", **function) == 1
        assert value("zart_claimed_total", **function, how="first") == 1
        assert value("zart_claimed_total", **function, how="replay") >= 1
        assert value("zart_executions_suspended_total", **function) >= 1
        assert value("zart_step_seconds_count", **charged, outcome="failed") == 1
        assert value("zart_step_seconds_count", **charged, outcome="returned") == 1
        assert value("zart_step_retries_total", **charged) == 1
        assert value("zart_events_delivered_total", function="metered") == 1
        assert value("zart_execution_seconds_count", **ended) == 1
        assert value("zart_claim_latency_seconds_count", **function) == 1
        assert value("zart_claim_seconds_count") >= 2
        assert value("zart_journal_commit_seconds_count") == value("zart_journal_batch_records_count") >= 3
        assert value("zart_worker_slots") == 0  # it has stopped
