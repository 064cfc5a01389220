"""Statements on a connection that somebody lends: of any driver, in whatever transaction it is in.

    LentConnection(connection).row(load("client", "public")["start"], parameters)

All that is asked of it is a cursor that takes `%s` for a parameter, as psycopg's and psycopg2's do, and what Django
and SQLAlchemy make of them. Drivers differ in the types that they know and in how they name them to the server, so
every parameter travels as text, which each statement casts; and some make mappings or named tuples of rows, so the
columns of each statement have names of their own.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from zart._postgres.direct import as_text
from zart.errors import UsageError

_NAMED = re.compile(r"%%|%\((\w+)\)s")

Row = tuple[Any, ...]


class LentConnection:
    """A connection of the caller's that is not asynchronous. What is done with it blocks the caller's thread."""

    def __init__(self, connection: Any) -> None:
        given: object = connection
        if isinstance(given, psycopg.AsyncConnection) or not callable(getattr(given, "cursor", None)):
            raise UsageError(
                f"connection= is {type(connection).__name__}, but zart.sync takes a synchronous connection that has "
                ".cursor(): a psycopg or psycopg2 connection, django.db.connection, or in SQLAlchemy "
                "session.connection().connection. With a psycopg.AsyncConnection, await zart.start(...)"
            )
        self._connection = connection

    def row(self, statement: bytes, parameters: Mapping[str, Any]) -> Row | None:
        """The first row of a statement, if it gives one. Raises what the driver does."""
        text, names = _positional(statement)
        cursor = self._cursor()
        try:
            cursor.execute(text, tuple(_text(parameters[name]) for name in names))
            row = cursor.fetchone()
        finally:
            cursor.close()
        return None if row is None else _values(row)

    def _cursor(self) -> Any:
        given: object = self._connection
        if isinstance(given, psycopg.Connection):
            return self._connection.cursor(row_factory=tuple_row)
        return self._connection.cursor()


def _values(row: Any) -> Row:
    """The columns of a row; some make a mapping of it, in their order."""
    given: object = row
    return tuple(row.values() if isinstance(given, Mapping) else row)


@cache
def _positional(statement: bytes) -> tuple[str, tuple[str, ...]]:
    """A statement with `%s` for each of its named parameters, and their names in that order."""
    names: list[str] = []

    def positional(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0]  # a percent sign of SQL's own, or of the schema's name
        names.append(found[1])
        return "%s"

    return _NAMED.sub(positional, statement.decode()), tuple(names)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    given: object = value
    return _array(value) if isinstance(given, list) else as_text(value).decode()


def _array(values: Sequence[Any]) -> str:
    elements = [
        "NULL" if value is None else '"' + re.sub(r'(["\\])', r"\\\1", as_text(value).decode()) + '"'
        for value in values
    ]
    return "{" + ",".join(elements) + "}"
