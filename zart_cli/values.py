"""JSON given on the command line, and written by it."""

import sys
from pathlib import Path
from typing import Any, Final

import click
import msgspec

import zart

NO_DATA: Final = msgspec.UNSET

data_option = click.option(
    "--data",
    metavar="JSON|@FILE|-",
    help="The payload: JSON, @FILE for a file's content, - for standard input.",
)


def read_data(given: str | None) -> Any:
    """The value of --data; NO_DATA when it was not given. Raises UsageError for what is no JSON."""
    if given is None:
        return NO_DATA
    if given == "-":
        text, what = sys.stdin.buffer.read(), "standard input"
    elif given.startswith("@"):
        what = given[1:]
        try:
            text = Path(what).read_bytes()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise zart.UsageError(f"--data {given}: {what} cannot be read: {reason}") from None
    else:
        # Bytes that are no UTF-8 come from the shell as halves of characters, and are refused below as what they are.
        text, what = given.encode("utf-8", "surrogatepass"), "--data"
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise zart.UsageError(f"{what} is nested too deep to be read: store flat data") from None
    except UnicodeDecodeError as error:
        raise zart.UsageError(f"{what} is no text in UTF-8: {error.reason} at byte {error.start}") from None
    except msgspec.DecodeError as error:
        hint = "" if text.lstrip()[:1] in (b"{", b"[", b'"') else """; text needs its quotes: '"like this"'"""
        raise zart.UsageError(f"{what} is no JSON: {error}{hint}") from None


def write_json(value: object) -> None:
    """One value as one line of JSON on stdout."""
    click.echo(msgspec.json.encode(value).decode())
