"""Step names that take values from the call: "charge-{order.id}".

A template reaches parameters, their attributes and their items, and nothing else: it calls nothing, and what begins
with an underscore is out of its reach. A rendered name is part of a step's identity, so a value whose text changes
from one process to the next is refused.
"""

import inspect
import re
from collections.abc import Mapping
from string import Formatter
from typing import Any, Final

import msgspec

from zart.errors import UsageError
from zart.names import check_name, shorten_name

_FIELD = re.compile(r"(?P<root>[^\W\d]\w*)(?P<path>(?:\.[^\W\d]\w*|\[[^\[\]]+\])*)")
_PART = re.compile(r"\.(\w+)|\[([^\[\]]+)\]")
_ACCEPTED: Final = "{parameter}, {parameter.attribute} and {parameter[item]}"
_MISSING: Final = object()


class _Access(msgspec.Struct, frozen=True):
    """One `.attribute` or `[item]` behind a parameter."""

    key: str | int
    is_item: bool


class _Field(msgspec.Struct, frozen=True):
    text: str
    root: str
    position: int | None
    """Where the parameter stands among the positional ones, if it may be given so."""
    by_keyword: bool
    default: object
    path: tuple[_Access, ...]
    format: str


class NameTemplate:
    """A step's name with fields, checked against the function's parameters once, when it is decorated."""

    __slots__ = ("_parts", "_text", "_what")

    def __init__(self, text: str, signature: inspect.Signature, what: str) -> None:
        """Read `text`; `what` is how errors call the step. Raises UsageError for a field that cannot be."""
        self._text = text
        self._what = what
        parts: list[str | _Field] = []
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise UsageError(
                f"{what}: the name {text!r} is no template ({error}): fields are {_ACCEPTED}; "
                "write {{ and }} for plain braces"
            ) from None
        for literal, field, spec, conversion in parsed:
            if literal:
                parts.append(literal)
            if field is not None:
                parts.append(self._read(field, spec or "", conversion, signature))
        self._parts = tuple(parts)

    def fixed(self) -> str | None:
        """The name itself if nothing in it depends on the call. Raises UsageError if it may not be a name."""
        if any(isinstance(part, _Field) for part in self._parts):
            return None
        return check_name("".join(str(part) for part in self._parts), f"{self._what}: the name")

    def render(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Return the name for one call. Raises UsageError when a field's value is missing or has no fixed text."""
        text = "".join(
            part if isinstance(part, str) else self._render(part, args, kwargs) for part in self._parts
        )
        return shorten_name(text, f"{self._what}: the name rendered from {self._text!r}")

    def _read(self, field: str, spec: str, conversion: str | None, signature: inspect.Signature) -> _Field:
        match = _FIELD.fullmatch(field)
        if match is None or conversion or "{" in spec:
            shown = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise UsageError(
                f"{self._what}: the field {{{shown}}} of the name {self._text!r} cannot be: use {_ACCEPTED}"
            )
        root = match["root"]
        parameter = signature.parameters.get(root)
        if parameter is None or parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            known = ", ".join(
                name
                for name, known in signature.parameters.items()
                if known.kind not in {known.VAR_POSITIONAL, known.VAR_KEYWORD}
            )
            raise UsageError(
                f"{self._what}: the name {self._text!r} asks for {root!r}, which is no parameter of the "
                f"function; it has {known or 'none'}"
            )
        position = None
        if parameter.kind is not parameter.KEYWORD_ONLY:
            position = list(signature.parameters).index(root)
        return _Field(
            text=field,
            root=root,
            position=position,
            by_keyword=parameter.kind is not parameter.POSITIONAL_ONLY,
            default=_MISSING if parameter.default is parameter.empty else parameter.default,
            path=tuple(self._accesses(match["path"], field)),
            format=spec,
        )

    def _accesses(self, path: str, field: str) -> list[_Access]:
        found: list[_Access] = []
        for attribute, item in _PART.findall(path):
            if attribute.startswith("_"):
                raise UsageError(
                    f"{self._what}: the field {{{field}}} of the name {self._text!r} reaches for {attribute!r}: "
                    "what begins with an underscore is out of reach; give the value a parameter or a public "
                    "attribute of its own"
                )
            key = int(item) if item.isascii() and item.isdigit() else item
            found.append(_Access(attribute or key, is_item=not attribute))
        return found

    def _render(self, field: _Field, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        value: Any = field.default
        if field.position is not None and field.position < len(args):
            value = args[field.position]
        elif field.by_keyword and field.root in kwargs:
            value = kwargs[field.root]
        if value is _MISSING:
            raise UsageError(
                f"{self._what}: the call lacks the argument {field.root!r}, which its name {self._text!r} needs"
            )
        try:
            for access in field.path:
                value = value[access.key] if access.is_item else getattr(value, str(access.key))
            _refuse_unsteady(value)
            return format(value, field.format)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UsageError(
                f"{self._what}: the field {{{field.text}}} of the name {self._text!r} cannot be rendered "
                f"({type(error).__name__}: {error})"
            ) from error


def _refuse_unsteady(value: object) -> None:
    kind = type(value)
    if isinstance(value, (set, frozenset)):
        raise TypeError("the order of a set differs from process to process")
    if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
        raise TypeError(
            f"the text of a {kind.__name__} is its address in memory, which changes at each replay"
        )
