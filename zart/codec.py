"""Values to JSON and back: what a step returns, what an execution is started with, what an event carries.

*What you get on the first run is what you get on replay.* A value is encoded once, and what the body
receives is the decoded twin, on the first run too: whatever the encoding changes shows in the first test and
not after the first crash. The annotation says what to decode to. Where there is none, JSON alone must say it:
the twin must equal the original in value and in every type, which catches tuples, dates, bytes, enums and
classes of any kind.

The bytes go into a column of type `json`, which keeps them as they are, but the views cast to `jsonb`. What
that cast or a reader would choke on is refused here, by name, so that one value can never spoil the batch it
would have travelled in: NUL, half surrogate pairs, nesting deeper than MAX_DEPTH, more than MAX_BYTES, and
NaN and infinity, which would silently become null.

msgspec does the work for builtins, Structs, dataclasses, attrs classes, TypedDicts, NamedTuples, enums and
the usual value types. Models of pydantic go through their own dump and validation, wherever they are nested;
everything else through `register_type`.

The tests for trouble look at the bytes first, since looking there costs some nanoseconds: NaN can only be
where a `null` is, a NUL where a `\\u` is, deep nesting where there are many bytes.
"""

import functools
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Final, Never, NoReturn, TypeVar, cast, final

import msgspec

from zart.errors import PayloadError, SerializationError, UsageError

MAX_BYTES: Final = 1 << 20
"""The largest value that can be stored, in bytes of JSON."""
MAX_DEPTH: Final = 512
"""How deep lists and objects may be nested."""

T = TypeVar("T")


@final
class _Any:
    """The type of ANY; `Codec(ANY)` and `Codec(typing.Any)` are the same."""

    def __repr__(self) -> str:
        return "zart.codec.ANY"


ANY: Final = _Any()
"""Stands for the annotation of what has none: JSON alone must tell the types."""

_OPEN: Final = (ANY, Any, object, NoReturn, Never)
_IMMUTABLE: Final = frozenset({type(None), bool, int, str, float})
_UNCHECKED_BYTES: Final = 2 * MAX_DEPTH
"""Nesting deeper than MAX_DEPTH takes more bytes than this."""
_UNICODE_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u(0000|[dD][89a-fA-F])")
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NO_BRACKET: Final = bytes(set(range(256)) - set(b"[]{}"))
_AT = re.compile(r" - at `(?P<path>.*)`\Z", re.DOTALL)


class _Registered(typing.NamedTuple):
    encode: Callable[[Any], object]
    decode: Callable[[Any], Any]


_registered: Final[dict[type, _Registered]] = {}


def register_type(type: type[T], /, *, encode: Callable[[T], object], decode: Callable[[Any], T]) -> None:
    """Teach zart to store instances of `type`, alone or inside of other values.

    `encode` turns an instance into what can already be stored, such as a str or a dict; `decode` turns what
    was read back into an instance. Both must not depend on anything but their argument: a value that was
    stored years ago is read with today's `decode`. Subclasses are encoded like `type` unless they are
    registered themselves. Register when the module that needs it is imported, before the registry of durable
    functions is used. Raises UsageError when `type` is no class or one that is stored without being
    registered.
    """
    if not inspect.isclass(type):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"register_type takes a class, not {type!r}")
    if not all(map(callable, (encode, decode))):
        raise UsageError(f"register_type({type.__qualname__}): encode and decode must be functions")
    if not _is_custom(type):
        raise UsageError(
            f"register_type({type.__qualname__}): zart stores this type already, in its own way; "
            "put the value into a class of yours to store it in another one"
        )
    _registered[type] = _Registered(encode, decode)


def registered_encoder(kind: type) -> Callable[[Any], object] | None:
    """The `encode` that was registered for `kind` or the nearest of its base classes."""
    for base in kind.__mro__:
        if (registered := _registered.get(base)) is not None:
            return registered.encode
    return None


class Codec:
    """Stores values of one annotation. Make it once, where the annotation is known; threads may share it."""

    __slots__ = ("_decode", "_difference", "_exact", "_name", "annotation")

    def __init__(self, annotation: Any, /, what: str | None = None, *, allow_sets: bool = False) -> None:
        """Prepare for values of `annotation`: a type with its forward references resolved, or ANY.

        `what` is how errors call it, such as "the result of step 'charge'". `allow_sets=False` refuses sets
        in the annotation: the order in which a body would walk through them differs from process to process.
        Raises UsageError for an annotation of which no value could be stored.
        """
        prefix = "" if what is None else f"{what}: "
        if any(annotation is known for known in _OPEN):
            annotation = ANY
        self.annotation = annotation
        self._name = _type_name(annotation)
        self._exact: frozenset[type] = _exact_types(annotation)
        self._difference = _difference_for(annotation)
        try:
            target = Any if annotation is ANY else annotation
            decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(target, dec_hook=_decode_custom)
            _check_types(annotation, allow_sets=allow_sets)
        except UsageError as error:
            raise UsageError(f"{prefix}{error}") from None
        except (TypeError, ValueError, NameError, AttributeError, RecursionError) as error:
            raise UsageError(f"{prefix}{self._name} cannot be stored as JSON: {error}") from error
        self._decode = decoder.decode

    def store(self, value: Any, what: str) -> tuple[bytes, Any]:
        """Encode `value` and return the bytes with what they decode to, which is what a body is to receive.

        `what` names the value in errors, such as "the result of step 'send-email'". Raises
        SerializationError when the value does not fit the annotation or would not come back as it is.
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
                "Give back what the annotation says, or correct the annotation",
                what=what,
            ) from error
        if self._difference is not None:
            found = self._difference(value, decoded, "$")
            if found is not None:
                raise SerializationError(found.told(what, self._name), what=what)
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
            raise PayloadError(
                f"{what} does not fit {self._name}: {message}{_at(path)}", path=path
            ) from error

    def __repr__(self) -> str:
        return f"Codec({self._name})"


# ---------------------------------------------------------------- encoding


def _encode(value: Any, what: str) -> bytes:
    try:
        data = _to_json(value)
    except RecursionError as error:
        raise SerializationError(
            f"{what} cannot be stored: it is nested too deep, or contains itself. Store flat data", what=what
        ) from error
    except UnicodeEncodeError as error:
        raise SerializationError(_SURROGATE.format(what=what), what=what) from error
    except SerializationError as error:
        raise SerializationError(f"{what} cannot be stored: {error}", what=what) from error
    except Exception as error:
        raise SerializationError(
            f"{what} cannot be stored: {type(error).__name__}: {error}", what=what
        ) from error
    if len(data) > _UNCHECKED_BYTES or b"\\u" in data or (b"null" in data and value is not None):
        _inspect(value, data, what)
    return data


_SURROGATE: Final = (
    "{what} cannot be stored: it contains half of a surrogate pair, which is no valid text. "
    "Decode its source correctly, or store bytes"
)


def _inspect(value: Any, data: bytes, what: str) -> None:
    """Look closer at what might be trouble. Raises SerializationError if it is."""
    if len(data) > MAX_BYTES:
        raise SerializationError(
            f"{what} takes {len(data):,} bytes, more than the {MAX_BYTES:,} that can be stored. "
            "Keep the data elsewhere, and store where it is",
            what=what,
        )
    if b"\\u" in data and (escape := _UNICODE_ESCAPE.search(data)):
        if escape[1] != b"0000":
            raise SerializationError(_SURROGATE.format(what=what), what=what)
        raise SerializationError(
            f"{what} cannot be stored: it contains the character NUL, which Postgres does not take in text. "
            "Remove it, or store bytes",
            what=what,
        )
    if len(data) > _UNCHECKED_BYTES and _is_deeper(data, MAX_DEPTH):
        raise SerializationError(
            f"{what} cannot be stored: it is nested more than {MAX_DEPTH} levels deep. Store flat data",
            what=what,
        )
    if b"null" in data and (path := _find_not_finite(_to_builtins(value), "$")) is not None:
        raise SerializationError(
            f"{what} cannot be stored: at {path} is NaN or an infinity, for which JSON has no number. "
            "Use None, text or a Decimal",
            what=what,
        )


def _is_deeper(data: bytes, depth: int) -> bool:
    """Whether the lists and objects of `data` are nested deeper than `depth`."""
    brackets = data.translate(None, _NO_BRACKET)
    if len(brackets) <= 2 * depth:
        return False
    brackets = _TEXT.sub(b"", data).translate(None, _NO_BRACKET)
    level = 0
    for byte in brackets:
        level += 1 if byte in b"[{" else -1
        if level > depth:
            return True
    return False


def _find_not_finite(value: Any, path: str) -> str | None:
    """Where in a tree of builtins a float is that JSON cannot write."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    for key, member in _members(value):
        if (found := _find_not_finite(member, path + key)) is not None:
            return found
    return None


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, member in value.items():
            yield _key_path(key), member
    elif isinstance(value, (list, tuple)):
        for index, member in enumerate(cast("list[Any]", value)):
            yield f"[{index}]", member


def _key_path(key: object) -> str:
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"


def _encode_custom(value: Any) -> object:
    """Encode what msgspec does not know: the hook of its encoder."""
    kind = type(value)
    if (encode := registered_encoder(kind)) is not None:
        return encode(value)
    if _is_pydantic(kind):
        # By field name: what a model writes under a serialization alias it does not always read again.
        return value.model_dump(mode="json", round_trip=True, by_alias=not _reads_by_name())
    for plain in (str, int, float, dict, list, tuple):
        if isinstance(value, plain):
            return _PLAIN[plain](value)
    raise SerializationError(
        f"zart does not know how to write {_type_name(kind)}. Use plain data (a Struct, dataclass or model), "
        f"or teach it with zart.register_type({kind.__name__}, encode=..., decode=...)"
    )


_PLAIN: Final[dict[type, Callable[[Any], Any]]] = {
    # Of a subclass with a text or a number of its own the plain value counts.
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    dict: dict,
    list: list,
    tuple: list,
}

_to_json = msgspec.json.Encoder(enc_hook=_encode_custom).encode


def _to_builtins(value: Any) -> Any:
    return msgspec.to_builtins(value, enc_hook=_encode_custom, str_keys=False)


# ---------------------------------------------------------------- decoding


def _decode_custom(target: Any, raw: Any) -> Any:
    """Decode into what msgspec does not know: the hook of its decoders."""
    kind = typing.get_origin(target) or target
    if (registered := _registered.get(kind)) is not None:
        return registered.decode(raw)
    if kind is object:
        return raw
    if _is_pydantic(kind):
        # As JSON, not as Python objects: a strict model takes a date from text only there.
        data = msgspec.json.encode(raw)
        if _reads_by_name():
            return kind.model_validate_json(data, by_alias=True, by_name=True)
        return kind.model_validate_json(data)
    raise UsageError(
        f"{_type_name(kind)} is not known to zart: call zart.register_type({kind.__name__}, encode=..., "
        "decode=...) in the module that defines it"
    )


def _explain(error: Exception) -> tuple[str, str | None]:
    """The text of a decoding error and the path of the field that it is about."""
    text = str(error)
    path = None
    if isinstance(error, msgspec.ValidationError):
        path = "$"
        if match := _AT.search(text):
            text, path = text[: match.start()], match["path"]
        if (cause := _pydantic_error(error.__cause__)) is not None:
            first = cause.errors(include_url=False, include_input=False, include_context=False)[0]
            text = f"{cause.title}: {first['msg']}"
            path += "".join(
                f"[{part}]" if isinstance(part, int) else _key_path(part) for part in first["loc"]
            )
    elif not isinstance(error, msgspec.DecodeError):
        text = f"{type(error).__name__}: {text}"
    return text, path


def _at(path: str | None) -> str:
    return "" if path is None else f" at {path}"


def _is_pydantic(kind: Any) -> bool:
    """Whether `kind` is a model of pydantic, which is loaded if there are any."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def _pydantic_error(error: BaseException | None) -> Any:
    pydantic = sys.modules.get("pydantic")
    return error if pydantic is not None and isinstance(error, pydantic.ValidationError) else None


@functools.cache
def _reads_by_name() -> bool:
    """Whether this pydantic can be told to accept field names beside aliases (2.11 and newer)."""
    version = cast("str", sys.modules["pydantic"].VERSION).split(".")
    return (int(version[0]), int(version[1])) >= (2, 11)


# ---------------------------------------------------------------- annotations


def _type_name(annotation: Any) -> str:
    if annotation is ANY:
        return "Any"
    if annotation is None or annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return (
            annotation.__qualname__
            if annotation.__module__ == "builtins"
            else (f"{annotation.__module__}.{annotation.__qualname__}")
        )
    return str(annotation).replace("typing.", "")


def _exact_types(annotation: Any) -> frozenset[type]:
    """The immutable types that need no decoding: an instance of exactly such a type is its own twin."""
    if annotation is ANY:
        return _IMMUTABLE
    if annotation is None:
        return frozenset({type(None)})
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        arms = [type(None) if arm is None else arm for arm in typing.get_args(annotation)]
        return (
            frozenset(arm for arm in arms if arm in _IMMUTABLE)
            if all(map(_is_hashable, arms))
            else frozenset()
        )
    if _is_hashable(annotation) and annotation in _IMMUTABLE:
        return frozenset({annotation})
    return frozenset()


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _is_custom(annotation: Any) -> bool:
    try:
        return isinstance(msgspec.inspect.type_info(annotation), msgspec.inspect.CustomType)
    except (TypeError, ValueError):
        return True


def _check_types(annotation: Any, *, allow_sets: bool) -> None:
    """Refuse what no value of `annotation` could come back from. Raises UsageError."""
    if annotation is ANY:
        return
    for info, inside in _walk(msgspec.inspect.type_info(annotation)):
        if isinstance(info, msgspec.inspect.CustomType):
            kind = typing.get_origin(info.cls) or info.cls
            if kind is object or kind in _registered or _is_pydantic(kind):
                continue
            raise UsageError(
                f"{_type_name(kind)} cannot be stored: use a Struct, dataclass or model, or teach zart with "
                f"zart.register_type({getattr(kind, '__name__', kind)}, encode=..., decode=...)"
            )
        if (
            not allow_sets
            and not inside
            and isinstance(info, (msgspec.inspect.SetType, msgspec.inspect.FrozenSetType))
        ):
            raise UsageError(
                f"{_type_name(annotation)} contains a set, whose order differs from process to process: "
                "return a sorted list"
            )


def _walk(root: Any) -> Iterator[tuple[Any, bool]]:
    """Every type within `root`, and whether it belongs to a field of a class rather than to `root` itself."""
    seen: set[type] = set()
    open_: list[tuple[Any, bool]] = [(root, False)]
    while open_:
        info, inside = open_.pop()
        yield info, inside
        cls = getattr(info, "cls", None)
        if cls is not None and hasattr(info, "fields"):
            if cls in seen:
                continue
            seen.add(cls)
            open_.extend((field.type, True) for field in info.fields)
            continue
        members = [getattr(info, name, None) for name in ("type", "item_type", "key_type", "value_type")]
        members += [member for name in ("types", "item_types") for member in getattr(info, name, ())]
        open_.extend((member, inside) for member in members if isinstance(member, msgspec.inspect.Type))


# ---------------------------------------------------------------- differences


class _Difference(typing.NamedTuple):
    path: str
    value: object
    decoded: object

    def told(self, what: str, annotation: str) -> str:
        kind, twin = type(self.value), type(self.decoded)
        if isinstance(self.value, (set, frozenset)):
            remedy = "return a sorted list"
        elif annotation == "Any":
            remedy = f"annotate it, such as `-> {kind.__name__}`, so that zart knows what to read back"
        else:
            remedy = f"say so in the annotation instead of Any ({annotation})"
        if kind is twin:
            changed = f"{_shortened(self.value)} would come back as {_shortened(self.decoded)}"
        else:
            changed = f"{_type_name(kind)} would come back as {_type_name(twin)}"
        return f"{what} would not be the same after a replay: at {self.path} {changed}. To mend it, {remedy}"


def _shortened(value: object) -> str:
    return shown if len(shown := repr(value)) <= 60 else shown[:57] + "..."


_Compare = Callable[[Any, Any, str], _Difference | None]


def _difference(value: Any, decoded: Any, path: str) -> _Difference | None:
    """The first place where two trees differ in value or type."""
    kind = type(value)
    if kind is not type(decoded):
        return _Difference(path, value, decoded)
    if kind is dict:
        if len(value) != len(decoded):
            return _Difference(path, value, decoded)
        for (key, member), (twin_key, twin) in zip(value.items(), decoded.items(), strict=True):
            if type(key) is not str or key != twin_key:
                return _Difference(f"{path} (a key)", key, twin_key)
            if (type(member) not in _IMMUTABLE or type(member) is not type(twin) or member != twin) and (
                found := _difference(member, twin, path + _key_path(key))
            ):
                return found
        return None
    if kind is list:
        for index, (member, twin) in enumerate(zip(value, decoded, strict=True)):
            if (type(member) not in _IMMUTABLE or type(member) is not type(twin) or member != twin) and (
                found := _difference(member, twin, f"{path}[{index}]")
            ):
                return found
        return None
    return None if value == decoded else _Difference(path, value, decoded)


def _difference_for(annotation: Any) -> _Compare | None:
    """What compares the places where `annotation` says nothing; None when it says everything."""
    return _difference if annotation is ANY else None
