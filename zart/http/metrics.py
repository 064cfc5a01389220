"""What /metrics says. This is the one place that knows where the figures come from."""

from collections.abc import Mapping
from typing import Final

from zart import Client, telemetry

CONTENT_TYPE: Final = "text/plain; version=0.0.4"
"""The router adds the charset, as to every text."""


async def exposition(client: Client, *, waiting: int) -> str:
    """The figures of the database, how many requests wait for results here, and what this process keeps of its own
    work, if it does so (`zart.telemetry.prometheus`): in Prometheus's text format.
    """
    stats = await client.stats()
    return "".join(
        (
            _family("zart_executions", "Executions by status.", "status", stats.by_status),
            _family(
                "zart_unserved_tasks",
                "Ready work that no live worker has registered.",
                "function",
                stats.unserved,
            ),
            "# HELP zart_workers Workers whose lease stands.\n# TYPE zart_workers gauge\n",
            f"zart_workers {stats.workers}\n",
            "# HELP zart_http_waiting Requests that wait for results.\n# TYPE zart_http_waiting gauge\n",
            f"zart_http_waiting {waiting}\n",
            telemetry.kept_metrics(),
        )
    )


def _family(name: str, about: str, label: str, values: Mapping[str, int]) -> str:
    lines = [f"# HELP {name} {about}\n# TYPE {name} gauge\n"]
    lines += [f'{name}{{{label}="{_escaped(key)}"}} {value}\n' for key, value in sorted(values.items())]
    return "".join(lines)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
