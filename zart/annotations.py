"""What a function's annotations say, and how errors call the function.

Annotations are resolved late, when a function is first run durably or its registry is frozen, so that they
may name what is defined further down in the module. Only those that are needed are resolved: a parameter of a
step may well be annotated with something that exists for type checkers alone.
"""

import collections.abc
import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final, get_args, get_origin

import typing_extensions

from zart.codec import ANY, Codec
from zart.errors import UsageError

_AWAITABLE: Final = (collections.abc.Coroutine, collections.abc.Awaitable)


def where(fn: object) -> str:
    """How an error calls a function: its name, file and line, such as "send_email (app.py:12)"."""
    function = _underlying(fn)
    name: str = getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or repr(fn)
    code = getattr(function, "__code__", None)
    if code is not None:
        return f"{name} ({code.co_filename}:{code.co_firstlineno})"
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if module else name


def module_globals(fn: object) -> dict[str, Any]:
    """The names of the module that `fn` was defined in; empty for functions written in C."""
    return getattr(_underlying(fn), "__globals__", {})


def is_coroutine_function(fn: Callable[..., Any]) -> bool:
    """Whether a call of `fn` returns a coroutine; decorators that keep `__wrapped__` are looked through."""
    return (
        inspect.iscoroutinefunction(fn)
        or inspect.iscoroutinefunction(inspect.unwrap(fn))
        or (not inspect.isroutine(fn) and inspect.iscoroutinefunction(type(fn).__call__))
    )


def signature_of(fn: Callable[..., Any]) -> inspect.Signature:
    """The parameters of `fn`; some functions written in C do not tell theirs and are taken to accept
    anything.
    """
    try:
        return inspect.signature(fn)
    except ValueError:
        return _ANYTHING


_ANYTHING: Final = inspect.Signature(
    [
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
    ]
)


def result_codec(fn: Callable[..., Any], what: str) -> Codec:
    """The codec of what `fn` returns, by its annotation; without one any value that survives JSON as it is.

    Raises UsageError, beginning with `what`, when the annotation cannot be resolved, is a set, or names a
    type that cannot be stored.
    """
    annotation = _resolve(fn, "return", what)
    if get_origin(annotation) in _AWAITABLE:
        annotation = get_args(annotation)[-1]
    return codec_for(annotation, f"{what}: what it returns")


def parameter_codec(fn: Callable[..., Any], name: str, what: str) -> Codec:
    """The codec of a parameter, by its annotation; sets may come in. Raises like `result_codec`."""
    return codec_for(_resolve(fn, name, what), f"{what}: its parameter {name!r}", allow_sets=True)


class Parameters:
    """How the arguments of one function are written and read, by their annotations; worked out when first needed."""

    __slots__ = ("_codecs", "_fn", "_positional", "_signature", "_spread", "_what")

    def __init__(self, fn: Callable[..., Any], signature: inspect.Signature, what: str) -> None:
        self._fn = fn
        self._what = what
        self._signature = signature
        self._codecs: dict[str, Codec] = {}
        parameters = signature.parameters.values()
        self._positional = [
            p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        self._spread = {p.kind: p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    def positional(self, number: int) -> Codec:
        """Of the argument at a place. Raises UsageError when there is none."""
        if number < len(self._positional):
            return self._of(self._positional[number])
        return self._of_spread(inspect.Parameter.VAR_POSITIONAL, f"{number + 1} arguments")

    def named(self, name: str) -> Codec:
        """Of the argument of a name. Raises UsageError when there is none."""
        parameter = self._signature.parameters.get(name)
        if parameter is not None and parameter.kind in (
            parameter.KEYWORD_ONLY,
            parameter.POSITIONAL_OR_KEYWORD,
        ):
            return self._of(name)
        return self._of_spread(inspect.Parameter.VAR_KEYWORD, f"an argument {name!r}")

    def _of_spread(self, kind: Any, given: str) -> Codec:
        name = self._spread.get(kind)
        if name is None:
            raise UsageError(f"{self._what} takes {self._signature}, not {given}")
        return self._of(name)

    def _of(self, name: str) -> Codec:
        codec = self._codecs.get(name)
        if codec is None:
            codec = self._codecs[name] = parameter_codec(self._fn, name, self._what)
        return codec


def codec_for(annotation: Any, what: str, *, allow_sets: bool = False) -> Codec:
    """The codec of a type, made once. Raises UsageError, beginning with `what`, for one that cannot be
    stored.
    """
    try:
        hash(annotation)
    except TypeError:  # Annotated with something unhashable
        return Codec(annotation, what, allow_sets=allow_sets)
    try:
        return _cached_codec(annotation, allow_sets=allow_sets)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None


@functools.lru_cache(maxsize=1024, typed=True)
def _cached_codec(annotation: Any, *, allow_sets: bool) -> Codec:
    return Codec(annotation, allow_sets=allow_sets)


def _resolve(fn: Callable[..., Any], name: str, what: str) -> Any:
    function = _underlying(fn)
    annotations: dict[str, Any] = getattr(function, "__annotations__", {})
    if name not in annotations:
        return ANY
    wanted = SimpleNamespace(
        __annotations__={name: annotations[name]}, __type_params__=getattr(function, "__type_params__", ())
    )
    try:
        hints = typing_extensions.get_type_hints(
            wanted,
            globalns=getattr(function, "__globals__", {}),
            localns=_nonlocals(function),
            include_extras=True,
        )
    except Exception as error:
        part = "what it returns" if name == "return" else f"its parameter {name!r}"
        raise UsageError(
            f"{what}: the annotation {annotations[name]!r} of {part} cannot be resolved "
            f"({type(error).__name__}: "
            f"{error}): what it names must exist in the module when a worker starts, not only under "
            "TYPE_CHECKING"
        ) from error
    return hints[name]


def _nonlocals(function: Any) -> dict[str, Any]:
    """What a nested function sees of the function around it; annotations as text may name that."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned so far
            continue
    return found


def _underlying(fn: Any) -> Any:
    """The function behind partials, methods, decorators that keep `__wrapped__`, and objects with
    `__call__`.
    """
    while True:
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif inspect.ismethod(fn):
            fn = fn.__func__
        elif hasattr(fn, "__wrapped__"):
            fn = fn.__wrapped__
        elif not inspect.isroutine(fn) and not isinstance(fn, type) and inspect.isfunction(type(fn).__call__):
            fn = type(fn).__call__
        else:
            return fn
