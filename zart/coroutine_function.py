"""Objects that stand for an `async def` and pass for one.

`inspect.iscoroutinefunction` is how frameworks decide whether to await what a call returns. For an object it
looks, on every supported Python, at the same attributes that a function has; so that is what such an object
is given.
"""

import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

from zart.annotations import signature_of


async def _any_coroutine() -> None:
    """Lends its code object to what stands for a plain def: a call of that returns a coroutine, too."""


CODE: CodeType = _any_coroutine.__code__


class CoroutineFunction:
    """Base of the callable objects that decorators return."""

    def _pass_for(self, fn: Callable[..., Any], signature: inspect.Signature | None = None) -> None:
        """Take over what tools read from a function.

        `__wrapped__` is given only if it is an `async def`: tools that look through it would find a plain
        function.
        """
        self.__name__: str = getattr(fn, "__name__", type(fn).__name__)
        self.__qualname__: str = getattr(fn, "__qualname__", self.__name__)
        self.__module__ = getattr(fn, "__module__", None) or __name__
        self.__doc__ = getattr(fn, "__doc__", None)
        self.__annotations__: dict[str, Any] = getattr(fn, "__annotations__", {})
        self.__defaults__: tuple[Any, ...] | None = getattr(fn, "__defaults__", None)
        self.__kwdefaults__: dict[str, Any] | None = getattr(fn, "__kwdefaults__", None)
        self.__globals__: dict[str, Any] = getattr(fn, "__globals__", {})
        self.__type_params__: tuple[Any, ...] = getattr(fn, "__type_params__", ())
        if inspect.isfunction(fn) and inspect.iscoroutinefunction(fn):
            self.__code__: CodeType = fn.__code__
            self.__wrapped__ = fn
        else:
            self.__code__ = CODE
            self.__signature__: inspect.Signature = signature or signature_of(fn)
