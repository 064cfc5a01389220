"""Values to JSON and back: what a step returns, what an execution is started with, what an event carries.

*What you get on the first run is what you get on replay.* A value is encoded once, and what the body receives
is the decoded twin, on the first run too: whatever the encoding changes shows in the first test and not after
the first crash. The annotation says what to decode to. Where there is none, or where it says Any, JSON alone
must tell: there the twin must equal the original in value and in every type, which catches tuples, dates,
bytes, enums and classes of any kind.

The bytes go into a column of type `json`, which keeps them as they are, but the views cast to `jsonb`. What
that cast or a reader would choke on is refused here, by name, so that one value can never spoil the batch it
would have travelled in: NUL, half surrogate pairs, nesting deeper than MAX_DEPTH, more than MAX_BYTES, and
NaN and infinity, which would silently become null.

msgspec does the work for builtins, Structs, dataclasses, attrs classes, TypedDicts, NamedTuples, enums and
the usual value types; `zart.custom_types` adds pydantic models and what `register_type` teaches.

The tests for trouble look at the bytes first, since that costs some nanoseconds: NaN can only be where a
`null` is, a NUL where a `\\u` is, deep nesting where there are many bytes.
"""

# Trees of anything are walked here: what isinstance finds in them has members of unknown types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import functools
import math
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Final, Never, NoReturn, Union, final, get_args, get_origin

import msgspec

from zart.custom_types import (
    decode_custom,
    encode_custom,
    explain_model_error,
    how_to_store,
    is_storable,
    register_type,
    step_into,
    type_name,
)
from zart.errors import PayloadError, SerializationError, UsageError
from zart.twins import Comparison, compare_members, compare_trees

__all__ = ["ANY", "MAX_BYTES", "MAX_DEPTH", "Codec", "register_type"]

MAX_BYTES: Final = 1 << 20
"""The largest value that can be stored, in bytes of JSON."""
MAX_DEPTH: Final = 512
"""How deep lists and objects may be nested."""


@final
class _Any:
    """The type of ANY; `Codec(ANY)` and `Codec(typing.Any)` are the same."""

    def __repr__(self) -> str:
        return "Any"


ANY: Final = _Any()
"""Stands for the annotation of what has none: JSON alone must tell the types."""

_OPEN: Final = (ANY, Any, object, NoReturn, Never)
_IMMUTABLE: Final = (type(None), bool, int, str, float)
_UNCHECKED_BYTES: Final = 2 * MAX_DEPTH
"""Nesting deeper than MAX_DEPTH takes more bytes than this."""
_UNICODE_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u(0000|[dD][89a-fA-F])")
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_NO_BRACKET: Final = bytes(set(range(256)) - set(b"[]{}"))
_AT = re.compile(r" - at `(?P<path>.*)`\Z", re.DOTALL)

_PLAIN: Final = frozenset((type(None), bool, int, float, str, list, dict, tuple))

_to_json = msgspec.json.Encoder(enc_hook=encode_custom).encode


class Codec:
    """Stores values of one annotation. Make it once, where the annotation is known; threads may share it."""

    __slots__ = ("_compare", "_decode", "_exact", "_name", "annotation")

    def __init__(self, annotation: Any, /, what: str | None = None, *, allow_sets: bool = False) -> None:
        """Prepare for values of `annotation`: a type with its forward references resolved, or ANY.

        `what` is how errors call it, such as "the result of step 'charge'". `allow_sets=False` refuses sets
        in the annotation: the order in which a body would walk through them differs from process to process.
        Raises UsageError for an annotation of which no value could be stored.
        """
        prefix = "" if what is None else f"{what}: "
        if _is_open(annotation):
            annotation = ANY
        self.annotation: Any = annotation
        self._name = type_name(annotation)
        try:
            target = Any if annotation is ANY else annotation
            decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(target, dec_hook=decode_custom)
            info = msgspec.inspect.type_info(target)
        except (TypeError, ValueError, NameError, AttributeError, RecursionError) as error:
            raise UsageError(f"{prefix}{self._name} cannot be stored: {error}") from error
        if (refusal := _refusal(info, allow_sets=allow_sets)) is not None:
            raise UsageError(f"{prefix}{self._name} cannot be stored: {refusal}")
        self._decode = decoder.decode
        self._exact = _exact_types(annotation)
        self._compare = _comparison(annotation)

    def store(self, value: Any, what: str) -> tuple[bytes, Any]:
        """Encode `value` and return the bytes with what they decode to, which is what a body is to receive.

        `what` names the value in errors, such as "the result of step 'send-email'". Raises SerializationError
        when the value does not fit the annotation or would not come back as it is.
        """
        data = _encode(value, what)
        if type(value) in self._exact:
            return data, value  # immutable, and JSON says its type
        try:
            decoded = self._decode(data)
        except Exception as error:
            message, path = _explain(error)
            raise SerializationError(
                f"{what} does not fit its annotation {self._name}: {message}{_at(path)}. "
                "Give what the annotation says, or correct the annotation",
                what=what,
            ) from error
        if self._compare is not None and (difference := self._compare(value, decoded)) is not None:
            raise SerializationError(
                f"{what} would not be the same after a replay: {difference.told(self._name)}", what=what
            )
        return data, decoded

    def encode(self, value: Any, what: str) -> bytes:
        """Encode `value` for somebody else to decode. Raises SerializationError when it cannot be stored."""
        return _encode(value, what)

    def load(self, data: bytes | str, what: str) -> Any:
        """Decode what `store` or `encode` returned, or what SQL stored in its place.

        Raises PayloadError, whose `path` is the field, when the data does not fit the annotation.
        """
        try:
            return self._decode(data)
        except Exception as error:
            message, path = _explain(error)
            told = "cannot be read" if path is None else f"does not fit {self._name}"
            raise PayloadError(f"{what} {told}: {message}{_at(path)}", path=path) from error

    def __repr__(self) -> str:
        return f"Codec({self._name})"


# ---------------------------------------------------------------- encoding


def _encode(value: Any, what: str) -> bytes:
    try:
        data = _to_json(value)
    except RecursionError as error:
        raise _refused(what, "it is nested too deep, or contains itself. Store flat data") from error
    except UnicodeEncodeError as error:
        raise _refused(what, _SURROGATE) from error
    except UsageError as error:  # of encode_custom, which knows the remedy
        raise _refused(what, str(error)) from error
    except Exception as error:
        raise _refused(what, f"{type(error).__name__}: {error}") from error
    if data[:1] <= b" ":  # a msgspec.Raw: a space in front is the mark of what is encrypted
        data = data.lstrip()
    if len(data) > _UNCHECKED_BYTES or b"\\u" in data or (b"null" in data and value is not None):
        _inspect(value, data, what)
    return data


def _refused(what: str, why: str) -> SerializationError:
    return SerializationError(f"{what} cannot be stored: {why}", what=what)


_SURROGATE: Final = "it contains half of a surrogate pair, which is no text. Mend its source, or store bytes"


def _inspect(value: Any, data: bytes, what: str) -> None:
    """Look closer at what might be trouble. Raises SerializationError if it is."""
    if len(data) > MAX_BYTES:
        why = f"it takes {len(data):,} bytes, and {MAX_BYTES:,} is the most"
        raise _refused(what, f"{why}. Keep the data elsewhere, and store where it is")
    if b"\\u" in data and (escape := _UNICODE_ESCAPE.search(data)):
        if escape[1] != b"0000":
            raise _refused(what, _SURROGATE)
        why = "it contains the character NUL, which Postgres does not take in text"
        raise _refused(what, f"{why}. Remove it, or store bytes")
    if len(data) > _UNCHECKED_BYTES and _is_deeper(data, MAX_DEPTH):
        raise _refused(what, f"it is nested more than {MAX_DEPTH} levels deep. Store flat data")
    if b"null" in data:
        tree = msgspec.to_builtins(value, enc_hook=encode_custom)
        if (path := _find_not_finite(tree)) is not None:
            why = f"at {path} is NaN or an infinity, for which JSON has no number"
            raise _refused(what, f"{why}. Use None, text or a Decimal")


def _is_deeper(data: bytes, depth: int) -> bool:
    """Whether the lists and objects of `data` are nested deeper than `depth`."""
    if len(data.translate(None, _NO_BRACKET)) <= 2 * depth:
        return False
    level = 0
    for byte in _TEXT.sub(b"", data).translate(None, _NO_BRACKET):
        level += 1 if byte in b"[{" else -1
        if level > depth:
            return True
    return False


def _find_not_finite(tree: Any) -> str | None:
    """Where in a tree of builtins a float is that JSON cannot write."""
    waiting: list[tuple[Any, str]] = [(tree, "$")]
    while waiting:
        node, path = waiting.pop()
        if isinstance(node, dict):
            waiting.extend((member, path + step_into(key)) for key, member in node.items())
        elif isinstance(node, (list, tuple)):
            waiting.extend((member, f"{path}[{index}]") for index, member in enumerate(node))
        elif isinstance(node, float) and not math.isfinite(node):
            return path
    return None


# ---------------------------------------------------------------- decoding


def _explain(error: Exception) -> tuple[str, str | None]:
    """The text of a decoding error and the path of the field that it is about; None when it is no JSON."""
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return text if isinstance(error, msgspec.DecodeError) else f"{type(error).__name__}: {text}", None
    path = "$"
    if match := _AT.search(text):
        text, path = text[: match.start()], match["path"]
    if (model := explain_model_error(error.__cause__)) is not None:
        text, path = model[0], path + model[1]
    return text, path


def _at(path: str | None) -> str:
    return "" if path is None else f" at {path}"


# ---------------------------------------------------------------- annotations


def _is_open(annotation: Any) -> bool:
    return any(annotation is known for known in _OPEN)


def _arms(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; of any other annotation itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _exact_types(annotation: Any) -> frozenset[type]:
    """The immutable types that need no decoding: an instance of exactly such a type is its own twin."""
    if annotation is ANY:
        return frozenset(_IMMUTABLE)
    arms = [type(None) if arm is None else arm for arm in _arms(annotation)]
    return frozenset(kind for kind in _IMMUTABLE if any(arm is kind for arm in arms))


def _comparison(annotation: Any) -> Comparison | None:
    """What compares the places where `annotation` leaves the type open; None when it leaves none.

    It looks into unions, dicts, lists and tuples of one type, not into the fields of classes.
    """
    if get_origin(annotation) is Annotated:
        return _comparison(get_args(annotation)[0])
    if _is_open(annotation):
        return compare_trees
    by_type: dict[type, Comparison] = {}
    for arm in _arms(annotation):
        if _is_open(arm):
            return compare_trees
        kind, members = _container(arm)
        inner = None if kind is None else _comparison(members)
        if kind is not None and inner is not None:
            by_type[kind] = compare_members(inner)
    if not by_type:
        return None

    def compare(value: Any, decoded: Any) -> Any:
        chosen = by_type.get(type(decoded))
        return None if chosen is None else chosen(value, decoded)

    return compare


def _container(annotation: Any) -> tuple[type | None, Any]:
    """The builtin that a container decodes to, and the annotation of its members."""
    origin, args = get_origin(annotation) or annotation, get_args(annotation)
    if origin is dict:
        return dict, args[1] if args else Any
    if origin is list:
        return list, args[0] if args else Any
    if origin is tuple and (not args or args[-1] is Ellipsis):
        return tuple, args[0] if args else Any
    return None, None


def _refusal(root: msgspec.inspect.Type, *, allow_sets: bool) -> str | None:
    """Why no value of a type could come back, with the remedy; None when all is well."""
    for info, is_field in _walk(root):
        if isinstance(info, msgspec.inspect.CustomType):
            kind = get_origin(info.cls) or info.cls
            if not is_storable(kind):
                return f"zart does not know {type_name(kind)}. {how_to_store(kind)}"
        is_set = isinstance(info, (msgspec.inspect.SetType, msgspec.inspect.FrozenSetType))
        if is_set and not is_field and not allow_sets:
            return "the order of a set differs from process to process: return a sorted list"
    return None


def _walk(root: msgspec.inspect.Type) -> Iterator[tuple[Any, bool]]:
    """Every type within `root`, and whether it belongs to a field of a class rather than to `root` itself."""
    seen: set[Any] = set()
    waiting: list[tuple[Any, bool]] = [(root, False)]
    while waiting:
        info, is_field = waiting.pop()
        yield info, is_field
        if (fields := getattr(info, "fields", None)) is not None:
            if info.cls not in seen:
                seen.add(info.cls)
                waiting.extend((field.type, True) for field in fields)
            continue
        members = [getattr(info, name, None) for name in ("type", "item_type", "key_type", "value_type")]
        members += [member for name in ("types", "item_types") for member in getattr(info, name, ())]
        waiting.extend((member, is_field) for member in members if isinstance(member, msgspec.inspect.Type))


@functools.cache
def codec_of(kind: Any) -> Codec:
    """How a value without an annotation is stored: by its own type where that has a form of its own."""
    return Codec(ANY if kind in _PLAIN else kind, allow_sets=True)
