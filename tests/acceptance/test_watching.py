"""`zart worker` with its log as JSON, metrics at a port, and traces."""

import json
import socket
import urllib.error
import urllib.request

import pytest

from tests.support.command import Command, until

APP = """\
import json
import logging
import os
from pathlib import Path

import zart
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from zart import durable, step

log = logging.getLogger("shop")


class ToFile(SpanExporter):
    def export(self, spans):
        with Path("spans").open("a") as file:
            for span in spans:
                parent = span.parent and trace.format_span_id(span.parent.span_id)
                told = [span.name, trace.format_trace_id(span.context.trace_id), parent, os.getpid()]
                file.write(json.dumps(told) + "\\n")
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ToFile()))
trace.set_tracer_provider(provider)


@step("charge-{number}")
def charge(number: int) -> int:
    log.warning("charging")
    return number


@durable("order")
async def order(number: int) -> int:
    charged = await charge(number)
    await zart.wait_for_event("paid")
    return await charge(charged)


registry = zart.Registry(order)
"""
QUICK = ("--app", "app:registry", "--poll-interval", "100ms", "--max-parked-bodies", "0")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def get(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def wait_for(zart: Command, status: str) -> None:
    def seen() -> str:
        return str(json.loads(zart("status", "o-1", "--json").stdout)["status"])

    until(lambda: seen() == status, seen)


def test_the_log_as_json(zart: Command) -> None:
    """Each line is an object; the user's own line has the execution and the step, and Zart's about it has its id."""
    with zart.running("worker", *QUICK, "--log-format", "json") as worker:
        worker.until("runs order")
        zart("start", "order", "--id", "o-1", "--data", "7")
        worker.until("o-1 waits for")
        assert worker.end() == 0
        lines = [json.loads(line) for line in worker.output.splitlines()]
    (own,) = [line for line in lines if line["logger"] == "shop"]
    assert (own["message"], own["level"]) == ("charging", "warning")
    assert (own["execution_id"], own["function"], own["step"], own["attempt"]) == (
        *("o-1", "order", "charge-7", 1),
    )
    (waits,) = [line for line in lines if line["message"].startswith("o-1 waits for")]
    assert waits["execution_id"] == "o-1"


def test_the_log_as_text_says_it_too(zart: Command) -> None:
    """Behind the user's own line."""
    with zart.running("worker", *QUICK) as worker:
        worker.until("runs order")
        zart("start", "order", "--id", "o-1", "--data", "7")
        worker.until("WARNING shop: charging (o-1, charge-7, attempt 1)\n")
        assert worker.end() == 0


def test_metrics_at_a_port(zart: Command) -> None:
    """On this machine only; each of several processes has a port of its own; they are gone with the worker."""
    port = free_port()
    with zart.running("worker", *QUICK, "--metrics-port", str(port)) as worker:
        worker.until(f"metrics at http://127.0.0.1:{port}/metrics")
        worker.until("runs order")
        zart("start", "order", "--id", "o-1", "--data", "7")
        wait_for(zart, "waiting")
        text = get(port)
        assert (
            'zart_step_seconds_count{function="order",outcome="returned",step="charge-{number}"} 1.0' in text
        )
        assert "charge-7" not in text
        assert "zart_worker_slots 100.0" in text
        assert worker.end() == 0
    with pytest.raises(urllib.error.URLError):
        get(port)


def test_several_processes_have_ports_side_by_side(zart: Command) -> None:
    """The second one's is the next."""
    port = free_port()
    with zart.running("worker", *QUICK, "--processes", "2", "--metrics-port", str(port)) as worker:
        worker.until(f"metrics at http://127.0.0.1:{port}/metrics")
        worker.until(f"metrics at http://127.0.0.1:{port + 1}/metrics")
        assert "zart_worker_slots" in get(port)
        assert "zart_worker_slots" in get(port + 1)
        assert worker.end() == 0


def test_a_port_that_is_taken(zart: Command) -> None:
    """Wrong usage, in one line that says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = zart("worker", *QUICK, "--metrics-port", str(port))
    assert told.returncode == 2
    (line,) = [line for line in told.stderr.splitlines() if line.startswith("zart:")]
    assert f"127.0.0.1:{port}" in line
    assert "--metrics-port" in line


@pytest.mark.not_in("twice", "suspending", reason="an execution is held more often there")
def test_one_trace_across_two_worker_processes(zart: Command) -> None:
    """`--otel`, with the provider that the app has set: both processes write spans of one trace, under one parent."""
    for status in ("waiting", "completed"):
        with zart.running("worker", *QUICK, "--otel") as worker:
            worker.until("runs order")
            if status == "waiting":
                zart("start", "order", "--id", "o-1", "--data", "7")
            else:
                zart("event", "o-1", "paid")
            wait_for(zart, status)
            assert worker.end() == 0
    spans = [json.loads(line) for line in (zart.directory / "spans").read_text().splitlines()]
    runs = [span for span in spans if span[0] == "run order"]
    assert [span[0] for span in spans] == ["step charge-{number}", "run order"] * 2
    assert len({trace for _, trace, _, _ in spans}) == 1
    assert len({parent for _, _, parent, _ in runs}) == 1
    assert len({process for *_, process in runs}) == 2


def test_nothing_is_imported_that_is_not_asked_for(zart: Command) -> None:
    """A worker without these options knows nothing of the extras."""
    (zart.directory / "plain.py").write_text(
        "import sys\nimport logging\nimport zart\nfrom zart import durable\n\n\n"
        "@durable('plain')\nasync def plain() -> None:\n"
        "    found = [name for name in ('opentelemetry', 'prometheus_client') if name in sys.modules]\n"
        "    logging.getLogger('shop').warning('found %s', found)\n\n\nregistry = zart.Registry(plain)\n"
    )
    with zart.running("worker", "--app", "plain:registry", "--poll-interval", "100ms") as worker:
        worker.until("runs plain")
        zart("start", "plain")
        worker.until("found []")
        assert worker.end() == 0
