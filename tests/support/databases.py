"""A database for each test: cloned from one that was migrated once, dropped afterwards whoever is still connected.

With `through` the addresses lead through a pooler; databases are made and dropped past it.
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import conninfo, sql


class Databases:
    """Makes and drops the databases of one test session."""

    def __init__(self, dsn: str, *, through: str | None = None) -> None:
        self._dsn = dsn
        self._through = through
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._numbers = itertools.count(1)
        # Copying files asks for a checkpoint, which is slow unless fsync is off; PostgreSQL 14 knows no other way.
        self._strategy = sql.SQL("")
        if self._connection.info.server_version >= 150000:
            self._strategy = sql.SQL("STRATEGY wal_log")

    def address(self, name: str) -> str:
        """The DSN of one of them, in the form of the one that was given."""
        return _with_database(self._through or self._dsn, name)

    def direct(self, name: str) -> str:
        """The same, past the pooler if there is one."""
        return _with_database(self._dsn, name)

    @contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """The name of a new database: a clone of `template`, or an empty one."""
        name = f"zart_test_{os.getpid()}_{next(self._numbers)}"
        source = sql.SQL("TEMPLATE {} {}").format(sql.Identifier(template or "template0"), self._strategy)
        self._connection.execute(sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), source))
        try:
            yield name
        finally:
            self._connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def close(self) -> None:
        self._connection.close()


def _with_database(dsn: str, name: str) -> str:
    if "://" in dsn:
        head, _, query = dsn.partition("?")
        scheme, _, rest = head.partition("://")
        server = rest.partition("/")[0]
        return f"{scheme}://{server}/{name}" + (f"?{query}" if query else "")
    return conninfo.make_conninfo(dsn, dbname=name)
