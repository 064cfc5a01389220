"""The registry: which durable functions and steps a worker offers.

It is filled while modules are imported and frozen when a worker starts; only then are annotations resolved,
so that the order of definitions in a module does not matter.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType, ModuleType
from typing import Any, cast

from zart.annotations import where
from zart.durable import Durable
from zart.errors import UsageError
from zart.step import Step


class Registry:
    """Durable functions, and steps that other workers may be asked to run; a durable brings the steps of its
    module.

    `lifespan` is a function without parameters that returns an async context manager. A worker enters it on
    its loop before it claims anything, and leaves it at its end; what it yields, one object or a tuple of
    several, is found again by `zart.resource(Type)`.

    Two functions under one name and version are refused with UsageError, naming both.
    """

    def __init__(
        self,
        *items: Durable[..., Any] | Step[..., Any],
        lifespan: Callable[[], AbstractAsyncContextManager[object]] | None = None,
    ) -> None:
        # A context manager made by contextlib can be called, too, but only as a decorator.
        given = cast("Any", lifespan)
        if given is not None and (not callable(given) or hasattr(given, "__aenter__")):
            raise UsageError(
                f"lifespan is {lifespan!r}, but it must be a function that returns an async context manager: "
                "decorate an async generator with contextlib.asynccontextmanager, and give it, not a call "
                "of it"
            )
        self._durables: dict[tuple[str, str | None], Durable[..., Any]] = {}
        self._steps: dict[str, Step[..., Any]] = {}
        self._lifespan = lifespan
        self._frozen = False
        self.register(*items)

    def register(self, *items: Durable[..., Any] | Step[..., Any]) -> None:
        """Add durable functions and steps; one that is there already is left as it is.

        Raises UsageError for anything else, for another function of a known name, and once a worker has
        started.
        """
        self._refuse_if_frozen()
        for item in items:
            if isinstance(item, Durable):
                self._add_durable(item)
            elif isinstance(item, Step):  # pyright: ignore[reportUnnecessaryIsInstance]
                self._add_step(item)
            else:
                raise UsageError(
                    f"{where(item)} cannot be registered: a registry takes what @durable and @step made of "
                    "functions"
                )

    def include(self, other: "Registry | ModuleType", /) -> None:
        """Add all that another registry holds, or every durable function and step that a module names.

        A lifespan comes along from a registry if this one has none. Raises UsageError like `register`, and
        when both registries have a lifespan.
        """
        self._refuse_if_frozen()
        if isinstance(other, Registry):
            if other.lifespan is not None and self._lifespan not in (None, other.lifespan):
                raise UsageError(
                    f"both registries have a lifespan, {where(self._lifespan)} and {where(other.lifespan)}: "
                    "write one "
                    "that enters both and yields a tuple"
                )
            self._lifespan = self._lifespan or other.lifespan
            self.register(*other.durables.values(), *other.steps.values())
        elif isinstance(other, ModuleType):  # pyright: ignore[reportUnnecessaryIsInstance]
            self.register(*_named_in(vars(other).values()))
        else:
            raise UsageError(
                f"include() takes a Registry or a module, not {other!r}; a function goes to register()"
            )

    @property
    def durables(self) -> Mapping[tuple[str, str | None], Durable[..., Any]]:
        """The durable functions by name and version."""
        return MappingProxyType(self._durables)

    @property
    def steps(self) -> Mapping[str, Step[..., Any]]:
        """The steps by name or template; those of the durable functions' modules once it is frozen."""
        return MappingProxyType(self._steps)

    @property
    def lifespan(self) -> Callable[[], AbstractAsyncContextManager[object]] | None:
        """What opens the resources of a worker."""
        return self._lifespan

    def freeze(self) -> None:
        """Collect the steps of the durable functions' modules and resolve all annotations; then nothing
        changes.

        A worker calls it when it starts; a second time does nothing. Raises UsageError for annotations that
        cannot be resolved or stored, with the function's name and place.
        """
        if self._frozen:
            return
        for durable in self._durables.values():
            for item in _named_in(durable.__globals__.values()):
                if isinstance(item, Step):
                    self._add_step(item)
        for durable in self._durables.values():
            _ = durable.spec
        for step in self._steps.values():
            _ = step.spec
        self._frozen = True

    def _add_durable(self, item: Durable[..., Any]) -> None:
        known = self._durables.setdefault((item.name, item.version), item)
        if known.fn is not item.fn:
            version = "" if item.version is None else f", version {item.version!r}"
            raise UsageError(
                f"two durable functions are named {item.name!r}{version}: {where(known.fn)} and "
                f"{where(item.fn)}; "
                "give one of them another name"
            )

    def _add_step(self, item: Step[..., Any]) -> None:
        known = self._steps.setdefault(item.name, item)
        if known.fn is not item.fn:
            raise UsageError(
                f"two steps are named {item.name!r}: {where(known.fn)} and {where(item.fn)}; "
                "give one of them another name"
            )

    def _refuse_if_frozen(self) -> None:
        if self._frozen:
            raise UsageError(
                "the registry is in use by a worker: register everything before the worker starts"
            )


def _named_in(values: Iterable[object]) -> list[Durable[..., Any] | Step[..., Any]]:
    return [
        cast("Durable[..., Any] | Step[..., Any]", value)
        for value in list(values)
        # Not isinstance: a lazy object, such as Django's settings, would be asked for its class, and load itself.
        if issubclass(type(value), (Durable, Step))
    ]
