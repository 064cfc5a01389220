"""A server for the application: uvicorn, until it is told to stop."""

import contextlib
import socket
from collections.abc import Callable, Generator
from typing import Final

from zart import UsageError
from zart.distribution import install_hint
from zart.http.application import HttpApi
from zart.http.door import is_loopback

_DRAIN_SECONDS: Final = 10
"""How long requests that are under way may take when the server stops."""
_BACKLOG: Final = 2048


def check_exposure(host: str, app: HttpApi) -> None:
    """Raise UsageError when others could reach `host` and nobody would ask them for a token."""
    if not app.has_tokens and not is_loopback(host):
        raise UsageError(
            f"{host!r} can be reached from elsewhere, and there are no tokens: give --token-file, or set "
            "ZART_HTTP_TOKEN; without tokens it serves 127.0.0.1 alone"
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises OSError when that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def url(listening: socket.socket) -> str:
    """Where a socket can be called."""
    host, port = listening.getsockname()[:2]
    return f"http://{_shown(host)}:{port}"


async def serve(
    app: HttpApi,
    listening: socket.socket,
    *,
    on_start: Callable[[], None],
    hear_stop: Callable[[Callable[[], None]], contextlib.AbstractContextManager[None]],
) -> None:
    """Serve until it is told to stop, then let requests come to an end.

    `hear_stop` installs what tells it: it gets the function to call. Requests that wait for results are answered at
    once then. The client is opened by whoever runs this. Raises UsageError when the extra is missing.
    """
    try:
        import uvicorn  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(f"a server for the HTTP API needs uvicorn: {install_hint('http')}") from error

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None]:
            with hear_stop(self.stop):
                yield

        def stop(self) -> None:
            app.stop_waiting()
            self.should_exit = True

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                on_start()

    config = uvicorn.Config(
        app,
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # an address that a caller may write itself says nothing
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    await Server(config).serve(sockets=[listening])


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
