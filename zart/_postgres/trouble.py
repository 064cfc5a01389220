"""What a failed statement means: three answers, and each calls for something else.

A failure of the data is the data's fault: the same values fail again, others would not. A failure of the
schema is the deployment's fault: nothing that this process writes will succeed. Everything else is the
weather (a lost connection, a server that restarts, a deadlock, a full disk): the statement is sent again
until it passes, and no execution fails of it.
"""

import struct
from enum import Enum

import psycopg

_DATA = frozenset(("21", "22", "23", "54"))
_SCHEMA = frozenset(("42",))
_NAME_TAKEN = "42P05"
"""A prepared statement of somebody else, on a pooler's connection: says nothing about the tables."""
_CONNECTION_STAYS = ("40", "55P03", "57014")


class Trouble(Enum):
    """What to do about a failure."""

    LOST = "lost"
    """Send it again, whole, with jitter. The connection may be gone, and the statement committed."""
    DATA = "data"
    """Find the record that cannot be stored; the rest can."""
    SCHEMA = "schema"
    """Stop, and say what is wrong with the tables or the role."""


def classify(error: BaseException) -> Trouble:
    """The kind of a failure, by its SQLSTATE class; what is not known is worth another try."""
    if isinstance(error, psycopg.Error):
        state = error.sqlstate
        if state is None:
            # The client's own refusal to send a value, or else the connection's end.
            return Trouble.DATA if isinstance(error, psycopg.DataError) else Trouble.LOST
        if state[:2] in _DATA:
            return Trouble.DATA
        return Trouble.SCHEMA if blames_schema(state) else Trouble.LOST
    if isinstance(error, (TypeError, ValueError, OverflowError, struct.error)):
        return Trouble.DATA  # a value that has no form on the wire: a lone surrogate, a number out of range
    return Trouble.LOST


def blames_schema(state: str | None) -> bool:
    """Whether this SQLSTATE says that the tables are not as expected, or may not be used."""
    return state is not None and state[:2] in _SCHEMA and state != _NAME_TAKEN


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE that an error of any driver carries, or else the one that it was raised from."""
    for one in (error, error.__cause__):
        state = getattr(one, "sqlstate", None) or getattr(one, "pgcode", None)
        if isinstance(state, str):
            return state
    return None


def keeps_connection(error: BaseException) -> bool:
    """Whether the connection is as good as before: a conflict with others, or a cancelled statement."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return state is not None and state.startswith(_CONNECTION_STAYS)


def breaks_off(error: BaseException) -> bool:
    """Whether the server broke off without a reason that names something else than the statement."""
    if not isinstance(error, psycopg.Error):
        return False
    return error.sqlstate is None or error.sqlstate[:2] in ("08", "XX")
