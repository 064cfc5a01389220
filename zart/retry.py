"""Retry policies: how often a step or body is tried again, after which delays, for which exceptions.

A policy is written as text in a decorator, or made by a class method when it names exception classes:

    none
    fixed(3, 10s)                                       10, 10, 10 s
    linear(3, 1s)                                       1, 2, 3 s
    exponential(5, 1s, factor=3, max=1m, jitter=0.2)    1, 3, 9, 27, 60 s, each 20 % more or less
"""

import datetime as dt
import math
import re
from collections.abc import Callable
from typing import Any, Literal, cast, final

import msgspec

from zart.durations import Duration, format_duration, parse_duration
from zart.errors import NonRetryable, RetryAfter, UsageError

MAX_DELAY = dt.timedelta(days=3650)
"""No delay grows beyond ten years, whatever the policy's arithmetic says."""
MAX_RETRIES = 1_000_000

_ACCEPTED = (
    "none, fixed(n, delay), linear(n, delay) or exponential(n, delay), where n counts the retries after the "
    "first attempt, delay is such as 2s, and factor=, max=, jitter= may follow, such as "
    '"exponential(5, 1s, factor=3, max=1m, jitter=0.2)"'
)
_CALL = re.compile(r"\s*(\w+)\s*(?:\((.*)\)\s*)?", re.ASCII | re.DOTALL)
_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "fixed": ("jitter",),
    "linear": ("max", "jitter"),
    "exponential": ("factor", "max", "jitter"),
}


@final
class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """n retries after the first attempt; exponential(5, "1s") waits 1, 2, 4, 8, 16 s; linear(3, "1s")
    1, 2, 3 s.

    `max` caps each delay. `jitter=0.2` draws plus or minus 20 % once per delay and stores it. An exception is
    retried when it is one of `retry_on` (default: every Exception) and none of `give_up_on`; NonRetryable
    never is. Make one with a class method; `str()` of it is text that `Retry.parse` reads. Whatever makes
    one raises UsageError for what it does not accept.
    """

    kind: Literal["none", "fixed", "linear", "exponential"]
    retries: int
    """How many attempts may follow the first."""
    delay: dt.timedelta = dt.timedelta(0)
    factor: float = 2.0
    max: dt.timedelta | None = None
    jitter: float = 0.0
    retry_on: tuple[type[Exception], ...] = (Exception,)
    give_up_on: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        _check_number("retries", self.retries, whole=True, least=0, most=MAX_RETRIES)
        _check_number("factor", self.factor, whole=False, least=1, most=1_000_000)
        _check_number("jitter", self.jitter, whole=False, least=0, most=1)
        _check_classes("retry_on", self.retry_on)
        _check_classes("give_up_on", self.give_up_on)

    @classmethod
    def none(cls) -> "Retry":
        """One attempt, no retry."""
        return cls(kind="none", retries=0)

    @classmethod
    def fixed(
        cls,
        retries: int,
        delay: Duration,
        /,
        *,
        jitter: float = 0.0,
        retry_on: tuple[type[Exception], ...] = (Exception,),
        give_up_on: tuple[type[Exception], ...] = (),
    ) -> "Retry":
        """The same delay before each retry."""
        return cls(
            kind="fixed",
            retries=retries,
            delay=parse_duration(delay, what="delay of a retry"),
            jitter=jitter,
            retry_on=retry_on,
            give_up_on=give_up_on,
        )

    @classmethod
    def linear(
        cls,
        retries: int,
        delay: Duration,
        /,
        *,
        max: Duration | None = None,
        jitter: float = 0.0,
        retry_on: tuple[type[Exception], ...] = (Exception,),
        give_up_on: tuple[type[Exception], ...] = (),
    ) -> "Retry":
        """The delay, twice the delay, three times the delay, and so on up to `max`."""
        return cls(
            kind="linear",
            retries=retries,
            delay=parse_duration(delay, what="delay of a retry"),
            max=None if max is None else parse_duration(max, what="max of a retry"),
            jitter=jitter,
            retry_on=retry_on,
            give_up_on=give_up_on,
        )

    @classmethod
    def exponential(
        cls,
        retries: int,
        delay: Duration,
        /,
        *,
        factor: float = 2.0,
        max: Duration | None = None,
        jitter: float = 0.0,
        retry_on: tuple[type[Exception], ...] = (Exception,),
        give_up_on: tuple[type[Exception], ...] = (),
    ) -> "Retry":
        """The delay, then each time `factor` times the one before, up to `max`."""
        return cls(
            kind="exponential",
            retries=retries,
            delay=parse_duration(delay, what="delay of a retry"),
            factor=factor,
            max=None if max is None else parse_duration(max, what="max of a retry"),
            jitter=jitter,
            retry_on=retry_on,
            give_up_on=give_up_on,
        )

    @classmethod
    def parse(cls, text: str, /) -> "Retry":
        """Read a policy from text, such as "exponential(3, 2s)"."""
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"retry is {text!r}, which is no text: use {_ACCEPTED}")
        try:
            return _parse(text)
        except UsageError as error:
            raise UsageError(f"retry {_cut(text)!r}: {_cut(str(error))}; accepted: {_ACCEPTED}") from None

    def delay_before(self, attempt: int, *, draw: Callable[[], float]) -> dt.timedelta:
        """How long to wait after the failed attempt number `attempt` (the first is 1) before the next one.

        `draw` gives a number in [0, 1) and is called once when the policy has jitter. Never more than `max`,
        never more than ten years.
        """
        most = MAX_DELAY if self.max is None else min(self.max, MAX_DELAY)
        seconds = min(self._planned_seconds(attempt), most.total_seconds())
        if self.jitter:
            seconds *= 1 + self.jitter * (2 * draw() - 1)
        return min(dt.timedelta(seconds=seconds), most)

    def _planned_seconds(self, attempt: int) -> float:
        seconds = self.delay.total_seconds()
        match self.kind:
            case "none" | "fixed":
                return seconds
            case "linear":
                return seconds * attempt
            case "exponential":
                try:
                    growth = self.factor ** (attempt - 1)
                except OverflowError:
                    growth = math.inf
                return seconds * growth if seconds else 0.0

    def allows(self, error: Exception) -> bool:
        """Whether `error` is one to try again after; how many retries are left is another question.

        A group is given up when one of its members is: another attempt would meet that member again.
        """
        return isinstance(error, (RetryAfter, *self.retry_on)) and not self._gives_up(error)

    def _gives_up(self, error: Exception) -> bool:
        if isinstance(error, (NonRetryable, *self.give_up_on)):
            return True
        if isinstance(error, ExceptionGroup):
            members = cast("ExceptionGroup[Exception]", error).exceptions
            return any(self._gives_up(member) for member in members)
        return False

    def __str__(self) -> str:
        if self.kind == "none":
            return "none"
        return self._written(format_duration)

    def __repr__(self) -> str:
        written = (
            "none()" if self.kind == "none" else self._written(lambda value: repr(format_duration(value)))
        )
        classes = ""
        if self.retry_on != (Exception,):
            classes += f", retry_on={_names(self.retry_on)}"
        if self.give_up_on:
            classes += f", give_up_on={_names(self.give_up_on)}"
        return f"Retry.{written[:-1]}{classes})"

    def _written(self, duration: Callable[[dt.timedelta], str]) -> str:
        parts = [str(self.retries), duration(self.delay)]
        if self.kind == "exponential" and self.factor != 2:
            parts.append(f"factor={self.factor!r}")
        if self.max is not None:
            parts.append(f"max={duration(self.max)}")
        if self.jitter:
            parts.append(f"jitter={self.jitter!r}")
        return f"{self.kind}({', '.join(parts)})"


def resolve_max_retries(value: int | str | Retry) -> Retry:
    """The policy that `max_retries` means; a number is that many retries, 1 s doubling up to 1 min."""
    if isinstance(value, Retry):
        return value
    if isinstance(value, str):
        return Retry.parse(value)
    if isinstance(value, bool) or not isinstance(value, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"max_retries is {value!r}: use a number of retries, a zart.Retry, or text: {_ACCEPTED}"
        )
    _check_number("max_retries", value, whole=True, least=0, most=MAX_RETRIES)
    return Retry.none() if value == 0 else Retry.exponential(value, "1s", max="1m")


def _cut(text: str) -> str:
    return text if len(text) <= 150 else text[:147] + "..."


def _parse(text: str) -> Retry:
    call = _CALL.fullmatch(text)
    if call is None:
        raise UsageError("it is empty" if not text.strip() else "it is not of the form name(n, delay)")
    kind, inside = call.groups()
    if kind not in _OPTIONS:
        raise UsageError(f"{kind!r} is no policy")
    positional, options = _split(inside or "")
    if kind == "none":
        if positional or options:
            raise UsageError("none takes nothing")
        return Retry.none()
    if len(positional) != 2:
        missing = "the number of retries and the delay are" if not positional else "the delay is"
        raise UsageError(
            f"{missing} missing" if len(positional) < 2 else f"{positional[2]!r} is one argument too many"
        )
    for name in options:
        if name not in _OPTIONS[kind]:
            raise UsageError(
                f"{kind} has no option {name!r}, only {' and '.join(f'{o}=' for o in _OPTIONS[kind])}"
            )
    values: dict[str, Any] = {
        name: parse_duration(value, what="max") if name == "max" else _read_number(name, value)
        for name, value in options.items()
    }
    retries, delay = positional
    if not re.fullmatch(r"[0-9]{1,9}", retries):
        raise UsageError(
            f"the number of retries is {retries!r}, not a whole number from 0 to {MAX_RETRIES:,}"
        )
    make: Callable[..., Retry] = getattr(Retry, kind)
    return make(int(retries), parse_duration(delay, what="the delay"), **values)


def _split(inside: str) -> tuple[list[str], dict[str, str]]:
    positional: list[str] = []
    options: dict[str, str] = {}
    for part in inside.split(",") if inside.strip() else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            if not name:
                raise UsageError("an argument is empty")
            if options:
                raise UsageError(f"{name!r} stands after an option; the number and the delay come first")
            positional.append(name)
        elif name in options:
            raise UsageError(f"{name}= is given twice")
        else:
            options[name] = value
    return positional, options


def _read_number(name: str, value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?|\.[0-9]{1,15}", value):
        raise UsageError(f"{name} is {value!r}, which is no number")
    return float(value)


def _check_number(name: str, value: object, *, whole: bool, least: int, most: int) -> None:
    kinds = int if whole else (int, float)
    # Comparisons with NaN are false, so it is refused here, too.
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        shown = repr(value) if not isinstance(value, int) or value.bit_length() < 200 else "too large"
        form = "a whole number" if whole else "a number"
        raise UsageError(f"{name} is {shown}, but it must be {form} from {least} to {most:,}")


def _check_classes(name: str, classes: object) -> None:
    members = cast("tuple[object, ...]", classes) if isinstance(classes, tuple) else (None,)
    if not all(isinstance(member, type) and issubclass(member, Exception) for member in members):
        raise UsageError(f"{name} is {classes!r}, but it must be a tuple of Exception classes: (OSError,)")


def _names(classes: tuple[type[Exception], ...]) -> str:
    return f"({', '.join(cls.__name__ for cls in classes)}{',' if len(classes) == 1 else ''})"
