"""`zart serve`: the HTTP API."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Generator
from pathlib import Path

import click
import msgspec

from zart.http import HttpOptions, create_app
from zart.loops import loop_factory
from zart_cli.children import SIGNALS, Stopping, hear_on_loop
from zart_cli.database import Database, database_options
from zart_cli.exits import FAILED, Ended
from zart_cli.logs import log_to_stderr
from zart_cli.watching import log_level_option


@click.command(short_help="Serve the HTTP API.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Who may call: one `name scopes token` per line. Else ZART_HTTP_TOKEN is a single token.",
)
@click.option("--prefix", default="/api/v1", show_default=True, help="What the paths of the API begin with.")
@click.option(
    "--allowed-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name that this service answers to; may be repeated. Default with tokens: any.",
)
@click.option("--open-probes", is_flag=True, help="/healthz and /readyz need no token.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Requests per second of each caller.  [default: 500]",
)
@log_level_option
@database_options
def serve(
    database: Database,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    prefix: str,
    hosts: tuple[str, ...],
    open_probes: bool,
    rate: float | None,
    log_level: str,
) -> None:
    """Serve the HTTP API: start executions, look at them, send them events, steer them.

    Without tokens only this machine is answered, and another --host is refused. Tokens have scopes: read, write, and
    payloads, without which people's data is not shown. Stops on SIGTERM or Ctrl-C, once requests under way are
    answered.
    """
    options = HttpOptions(hosts=hosts, open_probes=open_probes)
    if rate is not None:
        options = msgspec.structs.replace(options, rate=rate, burst=max(1, round(2 * rate)))
    log_to_stderr(log_level)
    # What matters of the server's life is said by zart.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
    client = database.client()
    app = create_app(client, token_file=token_file, prefix=prefix, options=options)
    from zart.http import serving  # noqa: PLC0415 (it needs the extra, and create_app has said so if it is missing)

    serving.check_exposure(host, app)
    try:
        listening = serving.listen(host, port)
    except OSError as error:
        raise Ended(
            f"{host}, port {port}, cannot be listened on: {error.strerror or error}", FAILED
        ) from None

    async def run() -> None:
        async with client:
            await serving.serve(
                app,
                listening,
                on_start=lambda: click.echo(_announcement(listening, prefix, has_tokens=app.has_tokens)),
                hear_stop=_signals,
            )

    with listening, asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(run())


def _announcement(listening: socket.socket, prefix: str, *, has_tokens: bool) -> str:
    from zart.http import serving  # noqa: PLC0415

    who = "" if has_tokens else " (no tokens: for this machine alone)"
    return f"listening on {serving.url(listening)}{prefix}{who}"


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Generator[None]:
    """While this lasts, a signal calls `stop`; a second one ends the process where it stands."""
    hear_on_loop(Stopping(stop, until="requests under way are answered"))
    try:
        yield
    finally:
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
