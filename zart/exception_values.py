"""Values within exceptions, their arguments and attributes, as bounded JSON.

What an exception carries has no annotation to read it back by, so values of a few types bear the name of
theirs; the rest of an exception's arguments becomes text, and the rest of its attributes is left out. Packing
never raises, whatever a value's own methods do.
"""

# Trees of anything are walked here: what isinstance finds in them has members of unknown types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import base64
import datetime as dt
import decimal
import enum
import math
import re
import uuid
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec

from zart.errors import Failure

MAX_ITEMS: Final = 1000
"""How many arguments are kept."""
MAX_DEPTH: Final = 20

_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
_KIND: Final = "$kind"
_VALUE: Final = "value"
_TEXTUAL: Final[dict[str, type]] = {
    cls.__name__: cls
    for cls in (dt.datetime, dt.date, dt.time, dt.timedelta, uuid.UUID, decimal.Decimal, bytes, Failure)
}
_MULTIPLE: Final[dict[str, Callable[[list[Any]], Any]]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
}


class _Unpackable(Exception):  # noqa: N818
    """A value that cannot be stored within an exception."""


def pack_arguments(args: tuple[Any, ...], limit: int) -> list[Any]:
    """Pack an exception's arguments in about `limit` bytes; what cannot be packed or is too large becomes text."""
    packed: list[Any] = []
    left: float = limit
    for arg in args[:MAX_ITEMS]:
        value, size = _sized(arg)
        if size > left:
            value = clean(arg if isinstance(arg, str) else guarded(repr, arg), max(int(left), 100))
            size = len(value)
        left -= size
        packed.append(value)
    return packed


def pack_state(state: dict[str, Any], limit: int) -> dict[str, Any]:
    """Pack an exception's attributes in `limit` bytes; what cannot be packed or is too large is left out."""
    packed: dict[str, Any] = {}
    left: float = limit
    for name, member in state.items():
        value, size = _sized(member)
        if size <= left and not _UNSTORABLE.search(name):
            left -= size
            packed[name] = value
    return packed


def _sized(value: Any) -> tuple[Any, float]:
    """`value` packed, and its bytes: too many to store when it cannot be packed."""
    try:
        packed = _pack(value, 0)
        return packed, len(msgspec.json.encode(packed))
    except Exception:  # noqa: BLE001 (a container of the user's own may do anything)
        return None, math.inf


def _pack(value: Any, depth: int) -> Any:
    """A tree of JSON from which `unpack` makes `value` again."""
    kind: Any = type(value)
    if value is None or kind is bool:
        return value
    if isinstance(value, str):
        return _pack_text(str(value.value) if isinstance(value, enum.Enum) else str.__str__(value))
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float.__float__(value)
        raise _Unpackable
    if depth >= MAX_DEPTH:
        raise _Unpackable
    if kind is list:
        return [_pack(item, depth + 1) for item in value]
    if kind is dict and all(type(key) is str for key in value):
        members = {key: _pack(member, depth + 1) for key, member in value.items()}
        if any(key == _KIND or _UNSTORABLE.search(key) for key in members):
            return {_KIND: "dict", _VALUE: [[_pack_text(key), member] for key, member in members.items()]}
        return members
    name: str = kind.__name__
    if kind in (tuple, set, frozenset):
        return {_KIND: name, _VALUE: [_pack(item, depth + 1) for item in value]}
    if _TEXTUAL.get(name) is kind:
        return {_KIND: name, _VALUE: msgspec.to_builtins(value)}
    raise _Unpackable


def _pack_text(text: str) -> Any:
    if not _UNSTORABLE.search(text):
        return text
    return {_KIND: "text", _VALUE: base64.b64encode(text.encode(errors="surrogatepass")).decode()}


def _unpack_text(encoded: str) -> str:
    return base64.b64decode(encoded).decode(errors="surrogatepass")


def unpack(packed: Any) -> Any:
    """Make a packed value again. Raises LookupError, TypeError or ValueError for what was not packed here."""
    if isinstance(packed, list):
        return [unpack(item) for item in packed]
    if not isinstance(packed, dict):
        return packed
    tree = cast("dict[str, Any]", packed)
    kind = tree.get(_KIND)
    if kind is None:
        return {key: unpack(member) for key, member in tree.items()}
    if kind == "text":
        return _unpack_text(tree[_VALUE])
    if kind in _MULTIPLE:
        return _MULTIPLE[kind](unpack(tree[_VALUE]))
    return msgspec.convert(tree[_VALUE], _TEXTUAL[kind])


# ---------------------------------------------------------------- text


def guarded(ask: Callable[[Any], str], value: object) -> str:
    """What `ask` answers about `value`, or a text that says that it does not."""
    try:
        return ask(value)
    except Exception as error:  # noqa: BLE001 (a method of the user's own)
        return f"<{type(value).__name__}, of which no text can be had: {type(error).__name__}>"


def clean(text: str, limit: int) -> str:
    """`text` as Postgres takes it, at most `limit` bytes of UTF-8 and a mark that some is missing."""
    if _UNSTORABLE.search(text):
        text = text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()
    if len(text) * 4 <= limit or len(encoded := text.encode()) <= limit:
        return text if type(text) is str else str.__str__(text)
    return encoded[:limit].decode(errors="ignore") + "..."
