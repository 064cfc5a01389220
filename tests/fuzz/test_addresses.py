"""Addresses of databases, malformed in all ways: refused by an error of this library, and no password ever shows."""

import psycopg
from hypothesis import given
from psycopg import conninfo

from tests.fuzz.examples import attempt, examples
from tests.fuzz.strategies import SECRET, addresses, texts
from zart import Client
from zart.config import mask_dsn, read_dsn


@examples(600)
@given(addresses)
def test_no_address_shows_its_password(address: str) -> None:
    """Neither where it is masked for a log, nor in the error that refuses it."""
    assert SECRET not in mask_dsn(address)
    readable, refusal = attempt(read_dsn, address, "the DSN")
    assert SECRET not in (refusal or mask_dsn(readable or ""))
    if readable is not None:
        conninfo.conninfo_to_dict(readable)


@examples(200)
@given(texts)
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """By an error of this library, whatever libpq would say to it."""
    for candidate in (text, f"postgresql://{text}", f"host={text}", f"postgresql://ann@{text}/db"):
        mask_dsn(candidate)
        readable, _ = attempt(read_dsn, candidate, "the DSN")
        if readable is None or readable == "embedded":
            continue
        Client(readable)
        try:
            conninfo.conninfo_to_dict(readable)
        except psycopg.Error as error:
            raise AssertionError(f"{readable!r} was taken for readable") from error
