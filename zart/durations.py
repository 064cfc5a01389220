"""Lengths of time: text, seconds or timedelta at the edge, timedelta inside."""

import datetime as dt
import math
import re

from zart.errors import UsageError

Duration = dt.timedelta | float | str
"""A timedelta, seconds as a number, or text such as "500ms", "2s", "1h30m", "2d"."""

MAX_DURATION = dt.timedelta(days=365_000)
"""About a thousand years: beyond it a date could no longer be reckoned from now."""

_ACCEPTED = 'a timedelta, seconds as a number, or text such as "500ms", "2s", "1h30m", "2d"'

# In microseconds, largest first: text must name its units in this order, each once.
_UNITS = {
    "w": 604_800_000_000,
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
}
_NUMBER = r"(?:[0-9]+(?:\.[0-9]+)?)"
_TEXT = re.compile("".join(rf"(?:(?P<{unit}>{_NUMBER})\s*{unit}(?![a-z])\s*)?" for unit in _UNITS), re.ASCII)


def parse_duration(value: Duration, *, what: str = "duration") -> dt.timedelta:
    """Return `value` as a timedelta, rounded to microseconds.

    `what` is how the value is called in the error's text, such as "timeout of step 'charge'". Raises
    UsageError for anything that is not a length of time: negative, NaN, infinite, a bool, empty or unknown
    text, or more than a thousand years.
    """
    if isinstance(value, dt.timedelta):
        duration = value
    elif isinstance(value, str):
        duration = _parse_text(value, what)
    elif not _is_finite_number(value):
        raise _refused(value, what)
    elif value < 0:
        raise _negative(value, what)
    elif value > MAX_DURATION.total_seconds():
        raise _too_long(value, what)
    else:
        duration = dt.timedelta(seconds=value)
    if duration < dt.timedelta(0):
        raise _negative(value, what)
    if duration > MAX_DURATION:
        raise _too_long(value, what)
    return duration


def _is_finite_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _parse_text(text: str, what: str) -> dt.timedelta:
    stripped = text.strip()
    match = _TEXT.fullmatch(stripped.lower())
    if not stripped or match is None:
        hint = ' (a number in text needs its unit: "2s")' if re.fullmatch(_NUMBER, stripped) else ""
        raise _refused(text, what, hint)
    try:
        parts = [_scale(number, _UNITS[unit]) for unit, number in match.groupdict().items() if number]
        return dt.timedelta(microseconds=sum(parts))
    except OverflowError:
        raise _too_long(text, what) from None


def _scale(number: str, unit: int) -> int:
    """Microseconds, in integers: "1.1s" is exactly 1,100,000, and many digits cannot overflow a float."""
    if len(number) > 40:
        raise OverflowError
    whole, _, fraction = number.partition(".")
    denominator = int("1" + "0" * len(fraction))
    return (int(whole + fraction) * unit + denominator // 2) // denominator


def _refused(value: object, what: str, hint: str = "") -> UsageError:
    return UsageError(f"{what} is {_show(value)}, which is no length of time{hint}: use {_ACCEPTED}")


def _negative(value: object, what: str) -> UsageError:
    return UsageError(f"{what} is {_show(value)}, which is negative: a length of time is zero or more")


def _too_long(value: object, what: str) -> UsageError:
    return UsageError(f"{what} is {_show(value)}, which is too long: at most {MAX_DURATION.days} days")


def _show(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print the longest ones
    return shown if len(shown := repr(value)) <= 60 else shown[:57] + "..."


def format_duration(duration: dt.timedelta) -> str:
    """Return text that `parse_duration` reads back exactly: "48h", "1h30m", "1.5s", "500ms", "3d", "0s".

    Whole hours below three days stay hours, as people write them.
    """
    left = abs(duration) // dt.timedelta(microseconds=1)
    sign = "-" if duration < dt.timedelta(0) else ""
    if left < 1_000_000:
        return f"{sign}{_shorten(left, 1_000)}ms" if left else "0s"
    parts: list[str] = []
    whole_hours = left < 3 * _UNITS["d"] and left % _UNITS["h"] == 0
    for unit in ("h",) if whole_hours else ("d", "h", "m"):
        count, left = divmod(left, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    if left:
        parts.append(f"{_shorten(left, _UNITS['s'])}s")
    return sign + "".join(parts)


def _shorten(count: int, unit: int) -> str:
    whole, rest = divmod(count, unit)
    if not rest:
        return str(whole)
    return f"{whole}.{rest:0{len(str(unit)) - 1}d}".rstrip("0")
