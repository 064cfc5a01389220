"""Durations: what is accepted, what is refused and how they are printed."""

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zart.durations import MAX_DURATION, format_duration, parse_duration
from zart.errors import UsageError


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("500ms", 0.5),
        ("2s", 2),
        ("1.5s", 1.5),
        ("1.1s", 1.1),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        (" 2 H ", 7200),
        ("2d", 172_800),
        ("1w", 604_800),
        ("1s500ms", 1.5),
        ("0s", 0),
        (0, 0),
        (2, 2),
        (0.25, 0.25),
        (dt.timedelta(minutes=3), 180),
    ],
)
def test_accepted(value: dt.timedelta | float | str, seconds: float) -> None:
    """Text with units, seconds as a number and timedeltas are lengths of time."""
    assert parse_duration(value) == dt.timedelta(seconds=seconds)


REFUSED_TEXTS = [
    *(
        "",
        "  ",
        "2",
        "1.5",
        "-2s",
        "s",
        "2 parsecs",
        "30m1h",
        "1s1s",
        "1e3s",
        ".5s",
        "2S!",
        "nan",
        "inf",
        "1mm",
    ),
    *("٣s", "x" * 5000, "9" * 30 + "d", "9" * 5000 + "s", "999999999999h"),
]
REFUSED_NUMBERS = [
    *(-1, -0.001, -1e-9, float("nan"), float("inf"), float("-inf"), 1e300, 10**400, -(10**400), 10**5000)
]
REFUSED_OTHERS: list[Any] = [True, False, None, b"2s", [], dt.timedelta(seconds=-1), dt.timedelta.max]


def _short_name(value: object) -> str:
    return f"{value!r:.20}" if not isinstance(value, int) else f"int of {value.bit_length()} bits"


@pytest.mark.parametrize("value", [*REFUSED_TEXTS, *REFUSED_NUMBERS, *REFUSED_OTHERS], ids=_short_name)
def test_refused(value: Any) -> None:
    """Whatever is no length of time is refused with a text that names the place and the value."""
    with pytest.raises(UsageError, match=r"^timeout of step 'charge' is .+: .+") as caught:
        parse_duration(value, what="timeout of step 'charge'")
    assert len(str(caught.value)) < 300


def test_refusal_teaches_the_unit() -> None:
    """A number in text without a unit is told what it lacks."""
    with pytest.raises(UsageError, match="needs its unit"):
        parse_duration("30")


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (dt.timedelta(hours=48), "48h"),
        (dt.timedelta(hours=50), "50h"),
        (dt.timedelta(days=1), "24h"),
        (dt.timedelta(days=3), "3d"),
        (dt.timedelta(days=400, hours=1), "400d1h"),
        (dt.timedelta(minutes=90), "1h30m"),
        (dt.timedelta(minutes=1), "1m"),
        (dt.timedelta(seconds=2), "2s"),
        (dt.timedelta(seconds=1.5), "1.5s"),
        (dt.timedelta(seconds=61.000001), "1m1.000001s"),
        (dt.timedelta(milliseconds=500), "500ms"),
        (dt.timedelta(microseconds=1500), "1.5ms"),
        (dt.timedelta(microseconds=1), "0.001ms"),
        (dt.timedelta(0), "0s"),
        (dt.timedelta(seconds=-2), "-2s"),
    ],
)
def test_printed(duration: dt.timedelta, text: str) -> None:
    """A duration prints as a person would write it."""
    assert format_duration(duration) == text


@given(st.timedeltas(min_value=dt.timedelta(0), max_value=MAX_DURATION))
def test_printed_text_reads_back(duration: dt.timedelta) -> None:
    """What format_duration prints, parse_duration reads back exactly."""
    assert parse_duration(format_duration(duration)) == duration
