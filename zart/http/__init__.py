"""The HTTP API: Zart for every language that can send a request.

    app = zart.http.create_app("postgresql://localhost/app")     # uvicorn myapp:app

    api = zart.http.create_app(client, token_file="/etc/myapp/tokens")
    application.mount("/zart", api)                              # in FastAPI, Starlette, or Litestar's `asgi`

`zart serve` runs it by itself. It is built on Litestar, the extra `http`; importing this module asks for nothing.
"""

import importlib.metadata
import os
import re
from typing import TYPE_CHECKING, Final

from zart import Client, UsageError
from zart.distribution import DISTRIBUTION, install_hint
from zart.http.options import HttpOptions

if TYPE_CHECKING:
    from zart.http.application import HttpApi

__all__ = ["HttpOptions", "create_app"]

_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")


def create_app(
    target: str | Client | None,
    *,
    token_file: str | os.PathLike[str] | None = None,
    prefix: str = "/api/v1",
    options: HttpOptions | None = None,
) -> "HttpApi":
    """The HTTP API as an ASGI application, to be served or mounted.

    `target` is a DSN, a Client (with its schema and author; it is opened here unless it is open when the first
    request comes), or None for the database that `ZART_DATABASE_URL` or `DATABASE_URL` names. `token_file` lists who
    may do what; without it `ZART_HTTP_TOKEN` is a single token with every scope; without either, only this machine is
    answered, wherever the application is mounted. The routes are below `prefix`, and /healthz, /readyz and /metrics
    below none.

    A server that runs its lifespan opens and closes the client. A host that mounts it does so with `async with app:`
    in its own lifespan; else the first request opens it, and `await app.aclose()` closes it. It belongs to one event
    loop. Raises UsageError for tokens, a prefix or options that cannot be used, and when the extra is missing.
    """
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(f'prefix is {prefix!r}: use a path such as "/api/v1", or "" for none')
    try:
        import litestar  # noqa: F401, PLC0415  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise UsageError(f"the HTTP API needs Litestar: {install_hint('http')}") from error
    from zart.http.application import HttpApi  # noqa: PLC0415
    from zart.http.gate import Gate  # noqa: PLC0415
    from zart.http.openapi import describe  # noqa: PLC0415
    from zart.http.service import Service  # noqa: PLC0415
    from zart.http.table import ROUTES  # noqa: PLC0415
    from zart.http.tokens import load_tokens  # noqa: PLC0415

    settings = options or HttpOptions()
    document = describe(ROUTES, prefix, importlib.metadata.version(DISTRIBUTION))
    return HttpApi(
        ROUTES, Service(target, settings, prefix, document), Gate(load_tokens(token_file), settings)
    )
