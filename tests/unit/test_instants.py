"""Points in time at the edge of the library."""

import datetime as dt

import pytest

from zart import UsageError
from zart.instants import in_utc


def zone(hours):
    return dt.timezone(dt.timedelta(hours=hours))


@pytest.mark.parametrize("hours", [0, 2, -11, 17.5, -23.9])
def test_a_time_of_any_zone_is_the_same_time_in_utc(hours):
    """Also of zones further away than PostgreSQL takes."""
    at = dt.datetime(2026, 11, 24, 14, 2, tzinfo=zone(hours))
    told = in_utc(at, "at=")
    assert told == at
    assert told.utcoffset() == dt.timedelta(0)


def test_a_time_without_a_zone_is_refused():
    """Nobody knows which it is."""
    with pytest.raises(UsageError, match="since is 2026-11-24T14:02:00, which has no time zone"):
        in_utc(dt.datetime(2026, 11, 24, 14, 2), "since")  # noqa: DTZ001 (that is what is refused)


@pytest.mark.parametrize(
    "at", [dt.datetime.max.replace(tzinfo=zone(-1)), dt.datetime.min.replace(tzinfo=zone(1))]
)
def test_a_time_beyond_the_calendar_is_refused(at):
    """In its own zone it is within."""
    with pytest.raises(UsageError, match="beyond the years 1 to 9999"):
        in_utc(at, "at=")
