"""How commands end: one place that turns an expected error into a line on stderr and an exit code.

    0   all well
    1   the execution failed, was cancelled or is blocked; or the command could not do what was asked
    2   wrong usage
    3   no such execution
    4   the wait timed out

What is not expected, a bug here or an error in the user's own module, keeps its traceback.
"""

from typing import Any, Final

import click
import psycopg

from zart import (
    ExecutionNotFound,
    ResultTimeout,
    SerializationError,
    UsageError,
    ZartError,
)

FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
TIMED_OUT: Final = 4
INTERRUPTED: Final = 130

_CODES: Final[tuple[tuple[type[ZartError], int], ...]] = (
    (ExecutionNotFound, NOT_FOUND),
    (ResultTimeout, TIMED_OUT),
    (UsageError, USAGE),
    (SerializationError, USAGE),
)


class Ended(Exception):  # noqa: N818
    """Ends the command with this line on stderr and this exit code."""

    def __init__(self, line: str, exit_code: int) -> None:
        super().__init__(line)
        self.line = line
        self.exit_code = exit_code


class ZartGroup(click.Group):
    """A group whose commands may raise zart's errors and the database's."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (Ended, ZartError, psycopg.Error) as error:
            ctx.exit(report(error))
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(self.commands)  # as they were added: the order of use


def report(error: Ended | ZartError | psycopg.Error) -> int:
    """Say in one line what went wrong; returns the exit code that goes with it."""
    if isinstance(error, Ended):
        line, code = error.line, error.exit_code
    elif isinstance(error, ZartError):
        line, code = _without_blank_lines(str(error)) or type(error).__name__, _code(error)
    else:
        # The first line is the reason; what follows may quote the statement.
        line, code = f"the database refused: {_first_line(str(error))}", FAILED
    click.echo(f"zart: {line}", err=True)
    return code


def _code(error: ZartError) -> int:
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def _without_blank_lines(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.strip())


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"
