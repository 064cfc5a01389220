"""Types that msgspec does not know: those that `register_type` teaches, and the models of pydantic.

pydantic is never imported here: where there is a model, it is loaded. A model is written by its own
`model_dump`, under field names, and read by its own `model_validate_json`, which takes field names and
aliases: so its validators run, its strictness holds, and input that a person wrote with aliases fits too.
"""

# Trees of anything are walked here: what isinstance finds in them has members of unknown types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeGuard, TypeVar, cast, get_args, get_origin

import msgspec

from zart.errors import UsageError

T = TypeVar("T")


class _Registered(NamedTuple):
    encode: Callable[[Any], object]
    decode: Callable[[Any], Any]


_registered: Final[dict[type, _Registered]] = {}


def register_type(type: type[T], /, *, encode: Callable[[T], object], decode: Callable[[Any], T]) -> None:
    """Teach zart to store instances of `type`, alone or inside of other values.

    `encode` turns an instance into what can already be stored, such as a str or a dict; `decode` turns what
    was read back into an instance. Neither may depend on anything but its argument: a value that was stored
    years ago is read with today's `decode`. Subclasses are encoded like `type` unless they are registered
    themselves.

    Register in the module that defines or first needs the type, before functions that use it are run. A
    second call for the same type replaces the first. Raises UsageError when `type` is no class, or one that
    is stored without being registered.
    """
    if not inspect.isclass(type):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"register_type takes a class, not {type!r}")
    name = type.__qualname__
    if not all(map(callable, (encode, decode))):
        raise UsageError(f"register_type({name}): encode and decode must be functions")
    if type is object or not _needs_hook(type):
        raise UsageError(
            f"register_type({name}): zart stores this type already, in its own way; "
            "put the value into a class of yours to store it in another one"
        )
    _registered[type] = _Registered(encode, decode)


def _needs_hook(kind: type) -> bool:
    try:
        return isinstance(msgspec.inspect.type_info(kind), msgspec.inspect.CustomType)
    except (TypeError, ValueError):
        return True


def registered_encoder(kind: type) -> Callable[[Any], object] | None:
    """The `encode` that was registered for `kind` or the nearest of its base classes."""
    if _registered:
        for base in kind.__mro__:
            if (registered := _registered.get(base)) is not None:
                return registered.encode
    return None


def is_storable(kind: Any) -> bool:
    """Whether `decode_custom` makes instances of `kind`."""
    return kind is object or kind in _registered or is_model(kind)


def is_model(kind: object) -> TypeGuard[type[Any]]:
    """Whether `kind` is a model class of pydantic."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def encode_custom(value: Any) -> object:
    """Turn what msgspec does not know into what it knows: the hook of its encoders.

    Raises UsageError for what nobody has taught.
    """
    kind: Any = type(value)
    if (encode := registered_encoder(kind)) is not None:
        return encode(value)
    if is_model(kind):
        return _dump_model(value)
    for plain, convert in _PLAIN.items():
        if isinstance(value, plain):
            return convert(value)
    raise UsageError(f"zart does not know how to write {type_name(kind)}. {how_to_store(kind)}")


_PLAIN: Final[dict[type, Callable[[Any], Any]]] = {
    # Of a subclass of these the plain value counts, whatever text or number it shows.
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    dict: dict,
    list: list,
    tuple: list,
}


def decode_custom(target: Any, raw: Any) -> Any:
    """Turn what was read back into an instance of `target`: the hook of msgspec's decoders."""
    kind = get_origin(target) or target
    if (registered := _registered.get(kind)) is not None:
        return registered.decode(raw)
    if kind is object:
        return raw
    if is_model(kind):
        data = msgspec.json.encode(raw)
        if _reads_by_name():
            return kind.model_validate_json(data, by_alias=True, by_name=True)
        return kind.model_validate_json(data)
    raise UsageError(f"zart does not know how to read {type_name(kind)}. {how_to_store(kind)}")


def how_to_store(kind: Any) -> str:
    """The remedy for a type that cannot be stored."""
    if getattr(kind, "__module__", "") == "collections.abc":
        return "Use list[...] or another type that holds its items"
    name = getattr(kind, "__name__", str(kind))
    return (
        "Use plain data (a Struct, dataclass or model), or teach it with "
        f"zart.register_type({name}, encode=..., decode=...)"
    )


# ---------------------------------------------------------------- pydantic

_MASK: Final = "**********"


def _dump_model(value: Any) -> object:
    # By field name: what a model writes under a serialization alias it does not always read again.
    dumped = value.model_dump(mode="json", round_trip=True, by_alias=not _reads_by_name())
    kind: Any = type(value)
    if _has_secrets(kind) and _MASK in repr(dumped):
        raise UsageError(
            f"{type_name(kind)} has a secret, of which pydantic writes asterisks only. "
            "Leave it out and fetch it where it is needed, or give the field a serializer that tells it"
        )
    return dumped


@functools.lru_cache(maxsize=1024)
def _has_secrets(kind: Any) -> bool:
    return "pydantic.types.Secret" in repr(kind.__pydantic_core_schema__)


@functools.cache
def _reads_by_name() -> bool:
    """Whether this pydantic can be told to accept field names beside aliases (2.11 and newer)."""
    major, minor = cast("str", sys.modules["pydantic"].VERSION).split(".")[:2]
    return (int(major), int(minor)) >= (2, 11)


def explain_model_error(error: BaseException | None) -> tuple[str, str] | None:
    """The first complaint of a pydantic ValidationError and the path behind the model that it is about."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not isinstance(error, pydantic.ValidationError):
        return None
    problem: Any = error
    first = problem.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{problem.title}: {first['msg']}", "".join(map(step_into, first["loc"]))


# ---------------------------------------------------------------- names for errors


def type_name(annotation: Any) -> str:
    """How errors call a type."""
    if annotation is None or annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not get_args(annotation):
        name = annotation.__qualname__
        return name if annotation.__module__ == "builtins" else f"{annotation.__module__}.{name}"
    return str(annotation).replace("typing.", "")


def step_into(key: object) -> str:
    """One step of a path such as "$.items[0].price"."""
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"
