"""A check: which look it takes, and how it judges what that gives."""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import zart
from zart.encryption import PLAIN, Payloads
from zart_cli.doctor.finding import Finding

Row = tuple[Any, ...]


class Patient(NamedTuple):
    """What the doctor knows before he looks."""

    schema: str
    where: str
    """The database, without its password."""
    old_after: dt.timedelta
    """What goes on for longer, or waits for longer, is worth a word."""
    registry: zart.Registry | None = None
    payloads: Payloads = PLAIN
    """What reasons are decrypted with."""


Judge = Callable[[Sequence[Row], Patient], list[Finding]]


class Check(NamedTuple):
    """`judge` is given the rows of the statement `look`, a file and a name; it asks nobody anything."""

    name: str
    look: tuple[str, str]
    judge: Judge
    parameters: Mapping[str, Any] = {}
    """Beside `schema`."""
