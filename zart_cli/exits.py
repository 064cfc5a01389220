"""How commands end: one place that turns an expected error into a line on stderr and an exit code.

    0   all well
    1   the execution failed, was cancelled or is blocked; or the command could not do what was asked
    2   wrong usage
    3   no such execution
    4   the wait timed out

What is not expected, a bug here or an error in the user's own module, keeps its traceback.
"""

from typing import Any, Final, NoReturn

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
        except Ended as ended:
            _end(ctx, ended.line, ended.exit_code)
        except ZartError as error:
            _end(ctx, _without_blank_lines(str(error)) or type(error).__name__, _code(error))
        except psycopg.Error as error:
            # The first line is the reason; what follows may quote the statement.
            _end(ctx, f"the database refused: {_first_line(str(error))}", FAILED)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(self.commands)  # as they were added: the order of use


def _end(ctx: click.Context, line: str, code: int) -> NoReturn:
    click.echo(f"zart: {line}", err=True)
    ctx.exit(code)


def _code(error: ZartError) -> int:
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def _without_blank_lines(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.strip())


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"
