"""What an id or a name may be: 1 to 200 bytes of UTF-8 without control characters."""

import hashlib
import re
from typing import Final

from zart.errors import UsageError

MAX_BYTES: Final = 200
"""The longest id or name, in bytes of UTF-8."""
KEPT_BYTES: Final = 160
"""How much of a longer rendered name is kept in front of its hash."""

_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_name(value: object, what: str) -> str:
    """Return `value` if it may be a name; `what` is how the error calls it, such as "the name of a step".

    Raises UsageError for anything else than text of 1 to 200 bytes in UTF-8 without control characters.
    """
    if not isinstance(value, str):
        raise UsageError(f"{what} is {_shown(value)}: it must be text of 1 to {MAX_BYTES} bytes")
    size = _size(value, what)
    if not 0 < size <= MAX_BYTES:
        told = "empty" if size == 0 else f"{_shown(value)}, {size} bytes long"
        raise UsageError(f"{what} is {told}: use 1 to {MAX_BYTES} bytes of UTF-8")
    return value


def check_id(value: object, what: str = "the execution id") -> str:
    """Return `value` if a caller may choose it as an id: a name without `~`, which ids of children contain.

    Raises UsageError otherwise.
    """
    checked = check_name(value, what)
    if "~" in checked:
        raise UsageError(f"{what} {_shown(checked)} contains '~', which is kept for ids that zart derives")
    return checked


def check_text(value: object, what: str) -> str:
    """Return `value` if PostgreSQL takes it as text: a str of whole characters without NUL. Raises UsageError."""
    if not isinstance(value, str):
        raise UsageError(f"{what} is {_shown(value)}: it must be text")
    if found := _NO_TEXT.search(value):
        raise UsageError(
            f"{what} is {_shown(value)}, which contains {found.group()!r} at position {found.start()}: that is no "
            "character that PostgreSQL can store"
        )
    return value


def shorten_name(name: str, what: str) -> str:
    """Return a rendered `name` as it is, or its first 160 bytes and a hash of the whole when it is too long."""
    size = _size(name, what)
    if size == 0:
        raise UsageError(f"{what} is empty: use 1 to {MAX_BYTES} bytes of UTF-8")
    if size <= MAX_BYTES:
        return name
    encoded = name.encode()
    kept = encoded[:KEPT_BYTES].decode(errors="ignore")  # drops the character that the cut went through
    return f"{kept}~{hashlib.blake2b(encoded, digest_size=12).hexdigest()}"


def _size(value: str, what: str) -> int:
    if found := _CONTROL.search(value):
        raise UsageError(
            f"{what} is {_shown(value)}, which contains the control character {found.group()!r} "
            f"at position {found.start()}: use any other sign"
        )
    if value.isascii():
        return len(value)
    try:
        return len(value.encode())
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what} is {_shown(value)}, which contains half of a surrogate pair at position {error.start} "
            "and is no valid text: decode its source correctly"
        ) from None


def _shown(value: object) -> str:
    shown = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
