"""Reading what a request brings: its body, within bounds of size, time and depth, and its query.

Both are read strictly: what a Struct does not name is refused rather than ignored, so that a slip of the pen does not
start something else than was meant.
"""

import asyncio
import datetime as dt
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import msgspec

from zart.http.options import HttpOptions
from zart.http.problems import MALFORMED, TOO_LARGE, TOO_SLOW, WRONG_TYPE, Refused

T = TypeVar("T")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_TEXT: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?')
_NO_BRACKET: Final = bytes(set(range(256)) - set(b"[]{}"))
_AT: Final = re.compile(r" - at `(?P<path>.*)`\Z", re.DOTALL)
_JSON: Final = re.compile(r"application/(?:[a-z0-9!#$&^_.-]+\+)?json")
_ALSO: Final = ("", "application/x-www-form-urlencoded")
"""No type at all, and what `curl -d` calls everything."""
_MOST_PARAMETERS: Final = 50


class Gone(Exception):  # noqa: N818 (nobody is left to be told)
    """Whoever asked has hung up."""


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], options: HttpOptions) -> bytes:
    """The body of a request; empty when it has none. Raises Refused past a bound, Gone when the caller hangs up."""
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced) > options.max_body:
        raise _too_large(options)
    try:
        async with asyncio.timeout(options.longest_body.total_seconds()):
            body = await _collect(receive, options)
    except TimeoutError:
        raise Refused(TOO_SLOW, "the body did not arrive in time", headers={"Connection": "close"}) from None
    if body:
        _check_type(headers)
        _check_depth(body, options.max_depth)
    return body


def decode_body(body: bytes, kind: Any) -> Any:
    """The body as `kind`. Raises Refused, naming the field, when it is no JSON or does not fit."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        text, field = _explain(error)
        raise Refused(MALFORMED, f"the body does not fit: {text}", field=field) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(MALFORMED, f"the body is no JSON: {error}") from error


def decode_query(query: bytes, kind: type[T]) -> T:
    """The query as `kind`, whose fields are read from text. Raises Refused as above, and for one given twice."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=_MOST_PARAMETERS,
        )
    except ValueError as error:
        raise Refused(MALFORMED, "the query is no list of name=value in percent-encoded UTF-8") from error
    given = dict(pairs)
    if len(given) != len(pairs):
        raise Refused(MALFORMED, "the query names a parameter twice")
    try:
        read = msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        text, field = _explain(error)
        raise Refused(MALFORMED, f"the query does not fit: {text}", field=field) from error
    for name, value in given.items():
        got = getattr(read, name)
        # The text "null" would be no filter at all, and a number is no time, though it can be read as one.
        if got is None or (isinstance(got, dt.datetime) and ":" not in value):
            raise Refused(MALFORMED, f"the query does not fit: {value!r} at $.{name}", field=f"$.{name}")
    return read


async def until_gone(receive: Receive) -> None:
    """Until whoever asked has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _collect(receive: Receive, options: HttpOptions) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        part = message.get("body", b"")
        size += len(part)
        if size > options.max_body:
            raise _too_large(options)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(options: HttpOptions) -> Refused:
    return Refused(
        TOO_LARGE,
        f"the body is over {options.max_body:,} bytes long: keep large data elsewhere, and send where it is",
        headers={"Connection": "close"},
    )


def _check_type(headers: Mapping[bytes, bytes]) -> None:
    given = headers.get(b"content-type", b"").decode("latin-1")
    kind = given.partition(";")[0].strip().lower()
    if kind not in _ALSO and not _JSON.fullmatch(kind):
        raise Refused(WRONG_TYPE, f"the body is {kind[:100]!r}: send application/json")


def _check_depth(body: bytes, most: int) -> None:
    """Raise Refused for lists and objects nested deeper than `most`; what is in texts does not count."""
    if len(body.translate(None, _NO_BRACKET)) <= most:
        return
    depth = 0
    for byte in _TEXT.sub(b"", body).translate(None, _NO_BRACKET):
        depth += 1 if byte in b"[{" else -1
        if depth > most:
            raise Refused(MALFORMED, f"the body is nested more than {most} levels deep")


def _explain(error: msgspec.ValidationError) -> tuple[str, str | None]:
    """The text of the error, and the field that it is about."""
    text = str(error)
    if match := _AT.search(text):
        return f"{text[: match.start()]} at {match['path']}", match["path"]
    return text, None
