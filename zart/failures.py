"""Exceptions as data: what is stored of one, and how it is made again.

A step that failed must fail the same way after a crash, in another process, under another release, and the
body's `except` clauses must still match. So an exception is stored as data and *rebuilt*, on the first run
too, so that there is no difference to find later.

Rebuilding runs no code that a row could choose. Classes come from a closed list: the builtins, zart's own,
those that the step names, and those that its module can see, either itself or as `module.Class`. Nothing is
imported or looked up by a stored name, nothing is unpickled, and no constructor of a user's class runs: the
instance is made by the builtin class underneath, then gets its arguments and its attributes back.

A class that is not on the list becomes a `StepFailed`, which also derives from the nearest base class that
is: the names of all base classes are stored, so `except PaymentError` catches a `CardDeclined(PaymentError)`
that this module cannot see.

Encoding never raises and is bounded: whatever an exception carries that cannot be stored becomes text or is
left out.
"""

# Trees of anything are walked here: what isinstance finds in them has members of unknown types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import builtins
import contextlib
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeGuard, cast

import msgspec

from zart import errors
from zart.errors import Failure, PayloadError, StepFailed
from zart.exception_values import clean, guarded, pack_arguments, pack_state, unpack

MAX_MESSAGE_BYTES: Final = 64 * 1024
MAX_TRACEBACK_BYTES: Final = 8 * 1024
MAX_ARGUMENTS_BYTES: Final = 64 * 1024
"""Of the arguments together, and of the attributes together."""
MAX_MEMBERS: Final = 100
"""Of an exception group, all its levels together."""
MAX_MEMBER_BYTES: Final = 2 * 1024
"""Of a member's message, of its arguments together, and of its attributes together."""
MAX_DEPTH: Final = 20
"""Of groups in groups."""

_NAME_BYTES: Final = 500


class _Stored(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a row holds of an exception."""

    type: str
    message: str = ""
    step: str | None = None
    attempts: int = 1
    traceback: str = ""
    bases: list[str] = []
    """The full names of its class and of the class's bases, nearest first, Exception and object left out."""
    args: list[Any] = []
    state: dict[str, Any] = {}
    """What was in its `__dict__`, as far as it can be stored."""
    members: "list[_Stored]" = []
    """Of an exception group."""


class RecordedTraceback(Exception):  # noqa: N818
    """The cause of a rebuilt exception: the text of where the first one was raised, and from what."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}" if self.args else ""


class KnownExceptions:
    """The exception classes that may be rebuilt for one function."""

    __slots__ = ("_classes", "_found", "_globals")

    def __init__(
        self, module_globals: Mapping[str, Any] | None = None, classes: Iterable[type[BaseException]] = ()
    ) -> None:
        """Know the builtins, zart's errors, `classes`, and what the function's module sees.

        The module's names are looked at when they are first needed: at decoration it is not loaded
        completely.
        """
        self._globals = module_globals
        self._classes = {_full_name(cls): cls for cls in classes if issubclass(cls, Exception)}
        self._found: dict[str, type[Exception] | None] = {}

    def find(self, name: str) -> type[Exception] | None:
        """The class of this full name ("shop.CardDeclined"), if it is one of the known."""
        try:
            return self._found[name]
        except KeyError:
            found = self._found[name] = self._search(name)
            return found

    def _search(self, name: str) -> type[Exception] | None:
        if (known := _OWN.get(name) or self._classes.get(name)) is not None:
            return known
        for value in _visible(self._globals or {}):
            if _is_exception(value) and _full_name(value) == name:
                return value
        return None


def _visible(names: Mapping[str, Any]) -> Iterator[object]:
    """The values of a module, then those of the modules that it imported."""
    values = list(names.values())
    yield from values
    for value in values:
        if issubclass(type(value), types.ModuleType):
            yield from list(vars(value).values())


def _is_exception(value: object) -> TypeGuard[type[Exception]]:
    # Asked of the type: a proxy in a module may answer `isinstance` by raising.
    return issubclass(type(value), type) and issubclass(cast("type", value), Exception)


def _full_name(cls: type) -> str:
    # Asked of `type`: a metaclass of the user's own may answer anything, or raise.
    name, module = _QUALNAME.__get__(cls), _MODULE.__get__(cls)
    return str(name) if module == "builtins" else f"{module}.{name}"


_QUALNAME: Final[Any] = vars(type)["__qualname__"]
_MODULE: Final[Any] = vars(type)["__module__"]
_ORDER: Final[Any] = vars(type)["__mro__"]


_OWN: Final[dict[str, type[Exception]]] = {
    _full_name(value): value
    for module in (builtins, errors)
    for value in vars(module).values()
    if _is_exception(value)
}


# ---------------------------------------------------------------- encoding


def exception_to_json(
    exc: BaseException, *, step: str | None = None, attempts: int = 1, message: str | None = None
) -> bytes:
    """Encode what is to be stored of `exc`. It never raises.

    `step` is the name of the step that it ended, None for a body; `attempts` how often that was tried; `message` what
    is told in place of its own text.
    """
    stored = _Stored(type=clean(_full_name(type(exc)), _NAME_BYTES), step=step and clean(step, _NAME_BYTES))
    stored.attempts = attempts
    try:
        _describe(stored, exc)
        if message is not None:
            stored.message = clean(message, MAX_MESSAGE_BYTES)
            stored.args = [stored.message]
        return msgspec.json.encode(stored)
    except Exception:  # noqa: BLE001 (whatever an exception of the user's does, its failure must be recorded)
        return msgspec.json.encode(
            _Stored(type=stored.type, message=stored.message, step=stored.step, attempts=attempts)
        )


def _describe(stored: _Stored, exc: BaseException) -> None:
    stored.traceback = _shorten_traceback(guarded(_format_traceback, exc))
    _take(stored, exc, message_limit=MAX_MESSAGE_BYTES, limit=MAX_ARGUMENTS_BYTES)
    groups = [(stored, exc, 0)]
    left = MAX_MEMBERS
    while groups:
        outer, group, depth = groups.pop()
        if not isinstance(group, BaseExceptionGroup):
            continue
        members = cast("BaseExceptionGroup[BaseException]", group).exceptions[:left]
        for member in members if depth < MAX_DEPTH else ():
            inner = _Stored(type=clean(_full_name(type(member)), _NAME_BYTES))
            _take(inner, member, message_limit=MAX_MEMBER_BYTES, limit=MAX_MEMBER_BYTES)
            outer.members.append(inner)
            groups.append((inner, member, depth + 1))
            left -= 1


def _take(stored: _Stored, exc: BaseException, *, message_limit: int, limit: int) -> None:
    stored.message = clean(guarded(str, exc), message_limit)
    stored.bases = [
        clean(_full_name(base), _NAME_BYTES)
        for base in _ORDER.__get__(type(exc))
        if base not in (Exception, BaseException, object)
    ]
    state = dict(_ATTRIBUTES.__get__(exc))
    for base, names in _MEMBERS.items():
        if isinstance(exc, base):
            held = {name: getattr(base, name).__get__(exc) for name in names}
            state.update({name: member for name, member in held.items() if member is not None})
    stored.state = pack_state(state, limit)
    if isinstance(exc, BaseExceptionGroup):
        stored.args = [clean(cast("BaseExceptionGroup[BaseException]", exc).message, message_limit)]
    else:
        stored.args = pack_arguments(_ARGUMENTS.__get__(exc), limit)


# What every exception has, asked for without the code of a user's class, which may answer something else.
_ATTRIBUTES: Final[Any] = vars(BaseException)["__dict__"]
_ARGUMENTS: Final[Any] = vars(BaseException)["args"]
_CAUSE: Final[Any] = vars(BaseException)["__cause__"]

_MEMBERS: Final[dict[type[BaseException], tuple[str, ...]]] = {
    # What builtin classes keep neither in their arguments nor in their `__dict__`.
    OSError: ("filename", "filename2"),
    ImportError: ("name", "path"),
    NameError: ("name",),
    AttributeError: ("name",),
}


def _format_traceback(exc: BaseException) -> str:
    """The traceback from the user's first frame on."""
    start = exc.__traceback__
    while start is not None and str(start.tb_frame.f_globals.get("__name__", "")).startswith("zart."):
        start = start.tb_next
    return "".join(traceback.format_exception(type(exc), exc, start or exc.__traceback__))


def _shorten_traceback(text: str) -> str:
    encoded = clean(text, 1 << 30).encode()
    if len(encoded) <= MAX_TRACEBACK_BYTES:
        return encoded.decode()
    head = encoded[: MAX_TRACEBACK_BYTES // 4].decode(errors="ignore")
    tail = encoded[-MAX_TRACEBACK_BYTES * 3 // 4 :].decode(errors="ignore")
    return f"{head}\n  ...\n{tail}"


# ---------------------------------------------------------------- decoding


_WHAT: Final = "a stored failure"


def failure_from_json(data: bytes | str, what: str = _WHAT) -> Failure:
    """What is known of a stored exception, for people and for `Failure` attributes.

    Raises PayloadError, which calls it `what`, when `data` is not what `exception_to_json` wrote.
    """
    return _failure(_read(data, what))


def exception_from_json(data: bytes | str, known: KnownExceptions, what: str = _WHAT) -> Exception:
    """Make the stored exception again: its own class if that is known, else a StepFailed.

    Raises PayloadError, which calls it `what`, when `data` is not what `exception_to_json` wrote.
    """
    stored = _read(data, what)
    try:
        return _rebuild(stored, known, _failure(stored))
    except Exception as error:
        raise PayloadError(
            f"{what} of type {stored.type!r} cannot be read: {type(error).__name__}: {error}. "
            "It was not written by this library; correct the row"
        ) from error


def _read(data: bytes | str, what: str) -> _Stored:
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise PayloadError(
            f"{what} is not one: {error}. It was not written by this library; correct the row",
            path="$",
        ) from error


_decoder: Final = msgspec.json.Decoder(_Stored)


def _failure(stored: _Stored) -> Failure:
    return Failure(
        type=stored.type,
        message=stored.message,
        step=stored.step,
        attempts=stored.attempts,
        traceback=stored.traceback,
    )


def _rebuild(stored: _Stored, known: KnownExceptions, failure: Failure) -> Exception:
    args = tuple(unpack(arg) for arg in stored.args)
    state: dict[str, Any] = {name: unpack(member) for name, member in stored.state.items()}
    cls = known.find(stored.type)
    if cls is None:
        cls = _stand_in(known, stored.bases, is_group=bool(stored.members))
        if issubclass(cls, StepFailed):
            state["failure"] = failure
            args = args if stored.members else (failure,)
    if issubclass(cls, ExceptionGroup):
        for member in stored.members:
            member.step, member.attempts = stored.step, stored.attempts
        members = [_rebuild(member, known, _failure(member)) for member in stored.members]
        rebuilt: Exception = _make_group(cls, str(args[0]) if args else stored.message, members)
    else:
        rebuilt = _make(cls, args)
    for base, names in _MEMBERS.items():
        if issubclass(cls, base):
            for name in names:
                if name in state:
                    getattr(base, name).__set__(rebuilt, state.pop(name))
    _ATTRIBUTES.__get__(rebuilt).update(state)
    if _MODULE.__get__(cls) == errors.__name__:
        str(rebuilt)  # raises when an edited row lacks what the text needs
    if stored.traceback:
        _CAUSE.__set__(rebuilt, RecordedTraceback(stored.traceback))
    return rebuilt


def _make(cls: type[Exception], args: tuple[Any, ...]) -> Exception:
    """An instance that no code of the class has seen: the builtin class underneath makes it."""
    base = _builtin_base(cls)
    made: Exception = base.__new__(cls, *args)
    with contextlib.suppress(TypeError):  # arguments that only a constructor of the user's own takes
        base.__init__(made, *args)  # a builtin: it fills in what the class keeps of its arguments
    _ARGUMENTS.__set__(made, args)
    return made


def _make_group(
    cls: "type[ExceptionGroup[Exception]]", message: str, members: list[Exception]
) -> "ExceptionGroup[Exception]":
    return ExceptionGroup.__new__(cls, message, members or [StepFailed(_LOST_MEMBER)])


_LOST_MEMBER: Final = Failure(
    type="?", message="a member that was not stored", step=None, attempts=1, traceback=""
)


def _builtin_base(cls: Any) -> Any:
    """The class whose `__new__` makes instances of `cls`: the nearest one that is not written in Python."""
    heap_type = 1 << 9
    while cls.__flags__ & heap_type:
        cls = cls.__base__
    return cls


def _stand_in(known: KnownExceptions, bases: list[str], *, is_group: bool) -> type[Exception]:
    """StepFailed, made to derive from the nearest known class among `bases` too."""
    for name in bases:
        nearest = known.find(name)
        if nearest is ExceptionGroup:
            return ExceptionGroup
        if nearest is None or nearest in StepFailed.__mro__:
            continue
        try:
            return _derived(nearest)
        except TypeError:
            continue  # a class that nothing may derive from
    return ExceptionGroup if is_group else StepFailed


_stand_ins: Final[dict[type[Exception], type[StepFailed]]] = {}


def _derived(nearest: type[Exception]) -> type[StepFailed]:
    found = _stand_ins.get(nearest)
    if found is None:
        names = {"__module__": StepFailed.__module__, "__qualname__": StepFailed.__qualname__}
        bases = (StepFailed, nearest)
        found = types.new_class("StepFailed", bases, exec_body=lambda body: body.update(names))
        _stand_ins[nearest] = found
    return found
