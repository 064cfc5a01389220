"""What a worker tells of itself, as options of `zart worker` and `zart dev`: its log, metrics, traces."""

import contextlib
import functools
import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import click

import zart
from zart import telemetry
from zart_cli.logs import FORMATS, LEVELS

_log = logging.getLogger("zart.cli")


@dataclass(frozen=True, kw_only=True)
class Watching:
    """What the options said."""

    log_level: str
    log_format: str
    otel: bool
    metrics_port: int | None
    metrics_host: str

    def check(self) -> None:
        """Raise UsageError for what is not installed."""
        if self.otel:
            telemetry.opentelemetry()
        if self.metrics_port is not None:
            telemetry.prometheus()

    @contextlib.contextmanager
    def on(self, process: int = 1) -> Generator[None, None, None]:
        """Traces and metrics while the block runs. Of several processes each answers scrapes at a port of its own.

        Raises UsageError when the port cannot be had, or what is needed is not installed.
        """
        with contextlib.ExitStack() as stack:
            if self.otel:
                stack.enter_context(telemetry.opentelemetry())
            if self.metrics_port is not None:
                stack.callback(self._serve(self.metrics_port + process - 1))
            yield

    def _serve(self, port: int) -> Callable[[], None]:
        try:
            end = telemetry.serve_metrics(port, address=self.metrics_host)
        except (OSError, OverflowError) as error:
            raise zart.UsageError(
                f"metrics cannot be served at {self.metrics_host}:{port}: {error}; choose another --metrics-port"
            ) from error
        _log.info("metrics at http://%s:%d/metrics", self.metrics_host, port)
        return end


log_level_option = click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default="info",
    show_default=True,
    help="The least level to log.",
)


def watching_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets what they said as `watching`."""

    @log_level_option
    @click.option(
        "--log-format",
        type=click.Choice(FORMATS),
        default="text",
        show_default=True,
        help="A readable line for each entry, or a JSON object.",
    )
    @click.option(
        "--otel",
        is_flag=True,
        envvar="ZART_OTEL",
        help="Make OpenTelemetry spans, to the provider that the app has set; ZART_OTEL=1 says it too.",
    )
    @click.option(
        "--metrics-port",
        type=click.IntRange(1, 65535),
        envvar="ZART_METRICS_PORT",
        metavar="PORT",
        help="Answer Prometheus at this port, further processes at the next ones; ZART_METRICS_PORT says it too.",
    )
    @click.option(
        "--metrics-host",
        default="127.0.0.1",
        show_default=True,
        metavar="ADDRESS",
        help="The address for that. Metrics name functions and steps, and nothing asks for a password.",
    )
    @functools.wraps(command)
    def wrapped(
        *arguments: Any,
        log_level: str,
        log_format: str,
        otel: bool,
        metrics_port: int | None,
        metrics_host: str,
        **options: Any,
    ) -> Any:
        watching = Watching(
            log_level=log_level,
            log_format=log_format,
            otel=otel,
            metrics_port=metrics_port,
            metrics_host=metrics_host,
        )
        return command(*arguments, watching=watching, **options)

    return wrapped
