"""Points in time: aware datetimes at the edge, UTC inside."""

import datetime as dt

from zart.errors import UsageError


def in_utc(value: dt.datetime, what: str) -> dt.datetime:
    """Return an aware datetime in UTC; PostgreSQL takes no zone 16 hours or more away from it, and Python does.

    `what` is how the error calls it. Raises UsageError without a time zone, and when UTC leaves the calendar.
    """
    if value.utcoffset() is None:
        raise UsageError(
            f"{what} is {value.isoformat()}, which has no time zone: use datetime(..., tzinfo=UTC)"
        )
    try:
        return value.astimezone(dt.UTC)
    except OverflowError:
        raise UsageError(
            f"{what} is {value.isoformat()}, which in UTC is beyond the years 1 to 9999"
        ) from None
