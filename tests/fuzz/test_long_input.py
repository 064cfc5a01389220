"""Long input takes time in proportion: three hundred thousand characters less than a second or three."""

import time
from collections.abc import Callable

import pytest

from tests.fuzz.examples import attempt
from zart import Retry, step
from zart.client.offering import check_known_id
from zart.codec import ANY, Codec
from zart.config import mask_dsn, read_dsn
from zart.digest import payload_digest
from zart.durations import parse_duration
from zart.failures import exception_to_json
from zart.names import check_name, shorten_name
from zart_cli.values import read_data

SIZE = 300_000
LIMIT_SECONDS = 3
"""It takes tenths of a second; what grows with the square would take minutes."""
PATTERNS = {
    "digits": "9" * SIZE,
    "spaces": " " * SIZE,
    "digits and a unit": "9" * SIZE + "h",
    "many units": "1h" * (SIZE // 2),
    "spaces within": "1" + " " * SIZE + "x",
    "dots": "1." * (SIZE // 2),
    "open": "fixed(" + "(" * SIZE,
    "closed": "fixed(" + ")" * SIZE + "x",
    "commas": "fixed(" + "," * SIZE + ")",
    "options": "fixed(1, 1s, " + "a=" * (SIZE // 2) + ")",
    "quotes": "password='" + "\\'" * (SIZE // 2),
    "words": "password=" + "a " * (SIZE // 2),
    "equals": "a=" * (SIZE // 2),
    "spaces and equals": ("a" + " " * 1000 + "=") * (SIZE // 1000),
    "passwords": "password" * (SIZE // 8),
    "spaced passwords": "password " * (SIZE // 9) + "=",
    "signs": "postgresql://" + "@" * SIZE,
    "colons": "postgresql://" + ":" * SIZE + "@h",
    "commas of hosts": "postgresql://" + "h:x," * (SIZE // 4),
    "parameters": "postgresql://h/d?" + "a=b&" * (SIZE // 4),
    "percents": "postgresql://h/d?" + "%41" * (SIZE // 3) + "=x",
    "braces": "{" * SIZE,
    "fields": "{number}" * (SIZE // 8),
    "attributes": "{number" + ".a" * (SIZE // 2) + "}",
    "items": "{number" + "[a]" * (SIZE // 3) + "}",
    "brackets": "[" * SIZE,
    "flat": "[" + "[]," * (SIZE // 3) + "[]]",
    "escapes": '"' + "\\u00e9" * (SIZE // 6) + '"',
    "backslashes": "\\" * SIZE,
    "nulls": "[" + "null," * (SIZE // 5) + "null]",
    "text": "é" * SIZE,
    "NUL": "\0" * SIZE,
    "halves": "\ud800" * SIZE,
}


def _decorate(text: str) -> None:
    @step(text)
    async def charge(number: int) -> None: ...


def _store(text: str) -> None:
    Codec(ANY).store([text, {text: [text]}], "it")


def _store_read(text: str) -> None:
    value = read_data(text)
    Codec(ANY).store(value, "it")
    payload_digest(value)


DOORS: dict[str, Callable[[str], object]] = {
    "duration": parse_duration,
    "policy": Retry.parse,
    "name": lambda text: check_name(text, "it"),
    "long name": lambda text: shorten_name(text, "it"),
    "id": check_known_id,
    "step": _decorate,
    "address": lambda text: read_dsn(text, "it"),
    "mask": mask_dsn,
    "value": _store,
    "data": _store_read,
    "failure": lambda text: exception_to_json(ValueError(text, {text: text})),
}


@pytest.mark.parametrize("door", DOORS)
def test_time_grows_with_the_length_only(door: str) -> None:
    """No pattern that is tried again at every position, no text that is copied for each of its characters."""
    slow: dict[str, float] = {}
    for name, pattern in PATTERNS.items():
        begun = time.process_time()
        _, refusal = attempt(DOORS[door], pattern)
        assert len(refusal or "") < 2000 or door in ("data", "value")
        took = time.process_time() - begun
        if took > LIMIT_SECONDS:
            slow[name] = took
    assert not slow
