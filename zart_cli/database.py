"""Which database a command talks to: the options for it, and where its address comes from."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import click

import zart
from zart._postgres import embedded
from zart.config import EMBEDDED, find_dsn, mask_dsn

DIRECTORY: Final = ".zart"
"""Where `zart dev` and the DSN "embedded" keep their server, in the working directory."""


class _Command(Protocol):
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Address:
    """A DSN ready for use, with its passwords, and where it came from, in words for people."""

    dsn: str
    source: str

    def __repr__(self) -> str:
        return f"<address {mask_dsn(self.dsn)}, {self.source}>"


@dataclass(frozen=True, kw_only=True, repr=False)
class Database:
    """What --dsn and --schema said."""

    dsn: str | None
    schema: str

    def find(self) -> Address:
        """The address that a command uses; the DSN "embedded" is not started yet. Raises UsageError without one."""
        found = find_dsn(self.dsn)
        if found is not None:
            dsn, source = found
            return Address(dsn=dsn, source="--dsn" if self.dsn is not None else source)
        server = running_dev(Path.cwd())
        if server is None:
            raise zart.UsageError(
                "no database is named: give --dsn, set ZART_DATABASE_URL or DATABASE_URL, or run `zart dev` here"
            )
        return Address(dsn=server.dsn(), source=f"zart dev in {server.directory}")

    def open(self) -> Address:
        """Like `find`, but what is to be started is running; a server found through `.zart/` is said on stderr."""
        address = self.find()
        if address.dsn == EMBEDDED:
            server = embedded.start(Path(DIRECTORY))
            return Address(dsn=server.dsn(), source=f"{address.source}, in {server.directory}")
        if address.source.startswith("zart dev"):
            click.echo(f"using the database of {address.source}", err=True)
        return address

    def client(self) -> zart.Client:
        return zart.Client(self.open().dsn, schema=self.schema)


def running_dev(start: Path) -> embedded.EmbeddedServer | None:
    """The server that runs under `.zart/` in this directory or the nearest one above it."""
    for directory in (start, *start.parents):
        if (directory / DIRECTORY).is_dir():
            server = embedded.running(directory / DIRECTORY)
            if server is not None:
                return server
    return None


def database_options(command: Callable[..., Any]) -> _Command:
    """Add --dsn and --schema; the command gets them as `database`."""

    @click.option("--dsn", metavar="DSN", help='The database; "embedded" is a server under .zart/.')
    @click.option("--schema", default="public", show_default=True, help="The schema of Zart's tables.")
    @functools.wraps(command)
    def wrapped(*args: Any, dsn: str | None, schema: str, **kwargs: Any) -> Any:
        return command(*args, database=Database(dsn=dsn, schema=schema), **kwargs)

    return wrapped
