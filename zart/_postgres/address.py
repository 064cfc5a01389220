"""Where the database is: a DSN that was given, one from the environment, or the embedded server."""

import os
import re
from pathlib import Path
from typing import Final

import psycopg
from psycopg import conninfo

from zart.errors import UsageError

VARIABLES: Final = ("ZART_DATABASE_URL", "DATABASE_URL")
"""The environment variables that name the database, the first one set counts."""
DIRECT_VARIABLE: Final = "ZART_DIRECT_URL"
"""An address that leads past a pooler, for LISTEN and the heartbeat."""
EMBEDDED: Final = "embedded"
"""In place of a DSN: the server under `.zart/` in the working directory."""
DIRECTORY: Final = ".zart"

_SCHEME = re.compile(r"(?P<database>\w+)(?:\+(?P<driver>\w+))?://", re.ASCII)
_SECRET = ("password", "sslpassword", "oauth_client_secret")


def resolve_address(dsn: str | None) -> str:
    """The conninfo that `dsn` means: itself, or what `ZART_DATABASE_URL`, then `DATABASE_URL`, holds.

    A driver's name in the scheme, as SQLAlchemy writes it (`postgresql+asyncpg://`), is dropped. "embedded" starts
    the server under `.zart/` in the working directory, or joins it if it runs. Raises UsageError for text that is no
    address of a PostgreSQL database, and when there is none.
    """
    source = "the DSN"
    if dsn is None:
        source, dsn = next(
            ((name, value) for name in VARIABLES if (value := os.environ.get(name))), (source, None)
        )
    if dsn is None:
        raise UsageError(
            "no database was named: give a DSN (such as postgresql://user@host/database, or 'embedded' for a server "
            f"of your own under {DIRECTORY}/), or set {VARIABLES[0]}"
        )
    if dsn.strip() == EMBEDDED:
        from zart._postgres import embedded  # noqa: PLC0415 (most programs need no server of their own)

        return embedded.start(Path(DIRECTORY)).dsn()
    return normalize(dsn, source)


def direct_address(main: str) -> str:
    """The address for LISTEN and the heartbeat: what `ZART_DIRECT_URL` holds, else `main`."""
    given = os.environ.get(DIRECT_VARIABLE)
    return normalize(given, DIRECT_VARIABLE) if given else main


def normalize(dsn: str, source: str = "the DSN") -> str:
    """`dsn` as libpq takes it; `source` is how an error calls it."""
    text = dsn.strip()
    if found := _SCHEME.match(text):
        if found["database"] not in ("postgres", "postgresql"):
            raise UsageError(
                f"{source} begins with {found[0]!r}, which is another database: Zart needs PostgreSQL, "
                "as in postgresql://user@host/database"
            )
        text = f"postgresql://{text[found.end() :]}"
    try:
        parts = conninfo.conninfo_to_dict(text)
    except psycopg.ProgrammingError:
        # libpq's own text may repeat the password.
        raise UsageError(
            f"{source} cannot be read as the address of a database: write postgresql://user:password@host:port/database "
            "(signs such as @ / # % in the password percent-encoded) or host=... dbname=... user=..."
        ) from None
    if not parts:
        raise UsageError(f"{source} is empty: give an address such as postgresql://user@host/database")
    return text


def mask(dsn: str) -> str:
    """`dsn` for people and logs: without any secret."""
    try:
        parts = {name: value for name, value in conninfo.conninfo_to_dict(dsn).items() if name not in _SECRET}
    except psycopg.ProgrammingError:
        return "(an address that cannot be read)"
    host, user = parts.pop("host", None), parts.pop("user", None)
    database, port = parts.pop("dbname", None), parts.pop("port", None)
    place = f"{user}@" if user else ""
    where = str(host) if host and not str(host).startswith("/") else ""
    shown = f"postgresql://{place}{where}{f':{port}' if port and where else ''}/{database or ''}"
    return f"{shown} (socket in {host})" if host and not where else shown
