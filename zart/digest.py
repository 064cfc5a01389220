"""What a call was asked with, as a short digest: a replay that asks with something else is found out.

A digest must change when the meaning of the arguments does, and never else: not with the process (the order
of a set), not with how the call is written (by position or by name), and above all not with a compatible
deploy. So it is taken of a *canonical* form, which is JSON:

- arguments are bound to the names of their parameters;
- a parameter, or a field of a Struct, dataclass, attrs class or pydantic model, that equals its default is
  left out, at every depth: a new field with a default changes no digest. (A changed default is not noticed.)
- keys and the members of sets are sorted, and a class counts by its fields, not by its name;
- what JSON does not know counts by the name of its type: a client or a logger may be handed to a step, and
  being another one does not matter.

The first byte of a digest is the number of these rules: should they ever change, what was recorded under the
old number is still compared by the old rules. ENCRYPTED stands before one that is stored encrypted, so that nobody can
tell from the database which guess of the arguments is right; decrypted it begins with the number of its rules again.

The canonical form has no recursion to speak of: deeper than MAX_DEPTH a value counts by its type, so that
neither a cycle nor how much stack happens to be left makes a difference.
"""

# Trees of anything are walked here: what isinstance finds in them has members of unknown types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import dataclasses
import datetime as dt
import decimal
import enum
import functools
import hashlib
import inspect
import math
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple

import msgspec

from zart.custom_types import is_model, registered_encoder
from zart.errors import UsageError

ALGORITHM: Final = 1
ENCRYPTED: Final = 2
"""The first byte of a digest as it is stored where payloads are encrypted; never the number of rules."""
OF_JSON: Final = 3
"""The first byte of the digest of JSON that a function which is not at hand will read; never the number of rules."""
PREVIEW_BYTES: Final = 500
MAX_DEPTH: Final = 100

_PREFIX: Final = bytes((ALGORITHM,))
_PLAIN: Final = frozenset({str, int, bool, type(None)})
_NATIVE: Final = frozenset({bytes, dt.datetime, dt.date, dt.time, dt.timedelta, uuid.UUID, decimal.Decimal})
_TIMES: Final = (dt.datetime, dt.date, dt.time)
_MISSING: Final = object()
HASH_BYTES: Final = 12
"""Of a digest, behind its first byte."""
_EMPTY_HASH: Final = hashlib.blake2b(digest_size=HASH_BYTES)

_to_json = msgspec.json.Encoder(order="deterministic").encode


class Digest(NamedTuple):
    """The digest of a call's arguments, and how they begin."""

    value: bytes
    """13 bytes: the number of the algorithm and 96 bits of blake2b."""
    preview: str
    """The first 500 bytes of the canonical arguments, for the message when they differ."""


class Arguments:
    """Takes digests of the arguments of one function. Make it once per function; threads may share it."""

    __slots__ = ("_by_place", "_defaults", "_keywords", "_names", "_required", "_signature", "_spread")

    def __init__(self, signature: inspect.Signature) -> None:
        self._signature = signature
        parameters = signature.parameters.values()
        self._names = tuple(
            p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        )
        self._keywords = frozenset(
            p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        )
        self._required = frozenset(
            p.name
            for p in parameters
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        )
        self._defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self._spread = {p.name: p.kind for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        self._by_place = not self._spread and self._required.issubset(self._names)
        """Whether as many arguments as there are names are a whole call."""

    def digest(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], bound: int = 0) -> Digest:
        """Take the digest of a call with `args` and `kwargs`.

        The first `bound` arguments (the instance of a method) count by their type only. Raises UsageError
        when the function cannot be called so.
        """
        if not args and not kwargs and not self._required:
            return _NOTHING
        names = self._names
        if self._by_place and len(args) == len(names) and not (kwargs or bound):
            return self._of(zip(names, args))  # noqa: B905 (strict= would cost more than the call)
        if self._spread or len(args) > len(names) or (kwargs and not self._keywords.issuperset(kwargs)):
            given = self._bind(args, kwargs)
        else:
            given = dict(zip(names, args))  # noqa: B905 (strict= would cost more than the call)
            if kwargs:
                given.update(kwargs)
            if len(given) < len(args) + len(kwargs) or not self._required <= given.keys():
                self._bind(args, kwargs)  # raises: twice the same argument, or one is missing
        if bound:
            for name in names[:bound]:
                if name in given:
                    given[name] = _type_text(given[name])
        return self._of(given.items())

    def _of(self, given: Iterable[tuple[str, Any]]) -> Digest:
        defaults = self._defaults
        canonical: dict[str, Any] = {}
        for name, value in given:
            if name in defaults and _equals(value, defaults[name]):
                continue
            canonical[name] = value if type(value) in _PLAIN else _canonical(value, 1)
        try:
            data = _to_json(canonical)
        except (ValueError, TypeError, OverflowError, RecursionError):
            data = _to_json(_cleaned(canonical))
        preview = data if len(data) <= PREVIEW_BYTES else data[:PREVIEW_BYTES]
        return Digest(_hashed(data), preview.decode(errors="ignore"))

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            given = dict(self._signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise UsageError(
                f"the call does not fit the function's parameters {self._signature}: {error}"
            ) from None
        for name in self._spread:
            if not given.get(name):
                given.pop(name, None)
        return given


def payload_digest(value: object) -> bytes:
    """Take the digest of what an execution is started with: 13 bytes, equal for equal input.

    Give it the decoded value. Numbers of one value are equal (1 and 1.0), the order of keys does not matter.
    """
    canonical = _whole(_canonical(value, 0))
    try:
        data = _to_json(canonical)
    except (ValueError, TypeError, OverflowError, RecursionError):
        data = _to_json(_cleaned(canonical))
    return _hashed(data)


def _hashed(data: bytes) -> bytes:
    state = _EMPTY_HASH.copy()  # cheaper than a new one
    state.update(data)
    return _PREFIX + state.digest()


# ---------------------------------------------------------------- the canonical form


def _canonical(value: Any, depth: int) -> Any:
    """`value` as a tree that msgspec encodes to the same bytes in every process."""
    kind: Any = type(value)
    if kind in _PLAIN or kind in _NATIVE:
        return value
    if kind is float:
        return value if math.isfinite(value) else f"<{value}>"
    if depth >= MAX_DEPTH:
        return _type_text(value)
    if kind is dict:
        return _canonical_mapping(value, depth + 1)
    if kind is list or kind is tuple:
        return [
            item if type(item) in _PLAIN else _canonical(item, depth + 1)  # the common case without a call
            for item in value
        ]
    fields = _fields_of(kind)
    if fields is not None:
        return _canonical_fields(value, fields, depth + 1)
    return _canonical_other(value, depth)


def _canonical_mapping(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    canonical: dict[str, Any] = {}
    for key, member in value.items():
        name = key if type(key) is str else _key_text(key, depth)
        while name in canonical:  # keys of a kind that JSON cannot tell apart
            name += "#"
        canonical[name] = member if type(member) in _PLAIN else _canonical(member, depth)
    return canonical


def _key_text(key: object, depth: int) -> str:
    canonical = _canonical(key, depth)
    if isinstance(canonical, str):
        return canonical
    return _to_json(_cleaned(canonical)).decode().strip('"')


def _canonical_other(value: Any, depth: int) -> Any:
    """What is neither plain nor has fields that are known."""
    if isinstance(value, enum.Enum):
        return _canonical(value.value, depth + 1)
    if isinstance(value, AbstractSet):
        members = [_canonical(member, depth + 1) for member in value]
        return sorted(members, key=lambda member: _to_json(_cleaned(member)))
    if isinstance(value, Mapping):
        return _canonical_mapping(value, depth + 1)
    if isinstance(value, (list, tuple)):
        return [_canonical(item, depth + 1) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return _canonical(float.__float__(value), depth)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, _TIMES):
        return value.isoformat()
    if (encode := registered_encoder(type(value))) is not None:
        return _canonical(encode(value), depth + 1)
    return _type_text(value)


def _type_text(value: object) -> str:
    kind = type(value)
    return f"<{kind.__module__}.{kind.__qualname__}>"


# ---------------------------------------------------------------- classes with fields


class _Field(NamedTuple):
    attribute: str
    name: str
    default: Any
    """`_MISSING` when there is none."""
    factory: Callable[..., Any] | None
    takes_self: bool


class _Fields(NamedTuple):
    tag: tuple[str, str | int] | None
    """Name and value of the field by which a union of Structs is told apart."""
    fields: tuple[_Field, ...]


def _canonical_fields(value: Any, fields: _Fields, depth: int) -> dict[str, Any]:
    canonical: dict[str, Any] = dict((fields.tag,)) if fields.tag is not None else {}
    for attribute, name, default, factory, takes_self in fields.fields:
        try:
            member = getattr(value, attribute)
        except AttributeError:
            continue  # never set
        usual = default if factory is None else _made(factory, value if takes_self else _MISSING)
        if usual is not _MISSING and _equals(member, usual):
            continue
        canonical[name] = member if type(member) in _PLAIN else _canonical(member, depth)
    extra = getattr(value, "model_extra", None) if is_model(type(value)) else None
    if extra:
        canonical.update(_canonical_mapping(extra, depth))
    return canonical


def _equals(value: Any, default: Any) -> bool:
    if value is default:
        return True
    if type(value) is not type(default):
        return False
    try:
        return bool(value == default)
    except Exception:  # noqa: BLE001 (a comparison of the user's own)
        return False


def _made(factory: Callable[..., Any], instance: Any) -> Any:
    try:
        return factory() if instance is _MISSING else factory(instance)
    except Exception:  # noqa: BLE001 (a function of the user's own: without a default the field counts)
        return _MISSING


@functools.lru_cache(maxsize=4096)
def _fields_of(kind: Any) -> _Fields | None:
    """The fields of a class of one of the four kinds, each with its default; None for any other class."""
    if issubclass(kind, msgspec.Struct):
        return _fields_of_struct(kind)
    if is_model(kind):
        return _fields_of_pydantic(kind)
    if dataclasses.is_dataclass(kind):
        return _Fields(
            None,
            tuple(
                _Field(
                    field.name,
                    field.name,
                    _MISSING if field.default is dataclasses.MISSING else field.default,
                    None if field.default_factory is dataclasses.MISSING else field.default_factory,
                    takes_self=False,
                )
                for field in dataclasses.fields(kind)
            ),
        )
    if (attributes := getattr(kind, "__attrs_attrs__", None)) is not None:
        return _Fields(None, tuple(map(_field_of_attrs, attributes)))
    if issubclass(kind, tuple) and hasattr(kind, "_field_defaults"):
        return _fields_of_named_tuple(kind)
    return None


def _fields_of_struct(kind: type[msgspec.Struct]) -> _Fields:
    names = kind.__struct_fields__
    defaults: tuple[Any, ...] = kind.__struct_defaults__
    padded = (msgspec.NODEFAULT,) * (len(names) - len(defaults)) + defaults
    fields: list[_Field] = []
    for attribute, name, default in zip(names, kind.__struct_encode_fields__, padded, strict=True):
        factory = getattr(default, "factory", None) if type(default) is _STRUCT_FACTORY else None
        plain = _MISSING if factory is not None or default is msgspec.NODEFAULT else default
        fields.append(_Field(attribute, name, plain, factory, takes_self=False))
    config = kind.__struct_config__
    tag = None if config.tag_field is None or config.tag is None else (config.tag_field, config.tag)
    return _Fields(tag, tuple(fields))


class _WithFactory(msgspec.Struct):
    field: list[int] = msgspec.field(default_factory=list)


_STRUCT_FACTORY: Final = type(_WithFactory.__struct_defaults__[0])


def _field_of_attrs(attribute: Any) -> _Field:
    default = attribute.default
    if default is sys.modules["attr"].NOTHING:
        return _Field(attribute.name, attribute.name, _MISSING, None, takes_self=False)
    if isinstance(default, sys.modules["attr"].Factory):
        return _Field(
            attribute.name, attribute.name, _MISSING, default.factory, takes_self=default.takes_self
        )
    return _Field(attribute.name, attribute.name, default, None, takes_self=False)


def _fields_of_pydantic(kind: Any) -> _Fields:
    fields: list[_Field] = []
    for name, field in kind.model_fields.items():
        factory = field.default_factory
        if factory is not None and getattr(field, "default_factory_takes_validated_data", False):
            factory = None  # its value depends on the other fields: it counts
        default = _MISSING if field.is_required() or field.default_factory is not None else field.default
        fields.append(_Field(name, name, default, factory, takes_self=False))
    return _Fields(None, tuple(fields))


def _fields_of_named_tuple(kind: Any) -> _Fields:
    return _Fields(
        None,
        tuple(
            _Field(name, name, kind._field_defaults.get(name, _MISSING), None, takes_self=False)
            for name in kind._fields
        ),
    )


# ---------------------------------------------------------------- what the encoder refuses, what is equal


def _cleaned(canonical: Any) -> Any:
    """A canonical tree in which whatever the encoder refuses is written in another way."""
    if isinstance(canonical, dict):
        return {_cleaned(key): _cleaned(member) for key, member in canonical.items()}
    if isinstance(canonical, list):
        return [_cleaned(item) for item in canonical]
    if isinstance(canonical, str):
        return canonical.encode(errors="backslashreplace").decode()  # half surrogate pairs
    if isinstance(canonical, int) and canonical.bit_length() > 10_000:
        return hex(canonical)  # more digits than Python writes
    try:
        _to_json(canonical)
    except (ValueError, TypeError, OverflowError):
        return _type_text(canonical)
    return canonical


def _whole(canonical: Any) -> Any:
    """A canonical tree in which a float without a fraction is an integer, as in the eyes of Postgres."""
    if isinstance(canonical, float):
        return int(canonical) if canonical.is_integer() else canonical
    if isinstance(canonical, dict):
        return {key: _whole(member) for key, member in canonical.items()}
    if isinstance(canonical, list):
        return [_whole(item) for item in canonical]
    return canonical


_NOTHING: Final = Digest(_hashed(b"{}"), "{}")
