"""Times as people read them."""

import datetime as dt

import pytest

from zart_cli.times import clock, short_duration

NOW = dt.datetime(2026, 11, 20, 14, 2, 11).astimezone()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0004, "<1ms"),
        (0.412, "412ms"),
        (0.9996, "1.0s"),
        (6.84, "6.8s"),
        (59.96, "1m00s"),
        (192, "3m12s"),
        (3 * 3600 + 299, "3h04m"),
        (48 * 3600, "2d0h"),
        (76 * 3600, "3d4h"),
        (-1, "0ms"),
    ],
)
def test_durations_take_two_units_at_most(seconds: float, text: str) -> None:
    """Rounding never shows sixty of anything."""
    assert short_duration(dt.timedelta(seconds=seconds)) == text


def test_times_are_as_long_as_they_must_be() -> None:
    """The time today, the weekday within a week, else the date."""
    assert clock(NOW, NOW) == "14:02:11"
    assert clock(NOW + dt.timedelta(days=2), NOW) == "Sun 14:02"
    assert clock(NOW - dt.timedelta(days=30), NOW) == "21 Oct 14:02"
    assert clock(NOW.replace(year=2025), NOW) == "20 Nov 2025"
