"""Times and lengths of time as people read them; local time, since the reader is here."""

import datetime as dt

_DAY = dt.timedelta(days=1)


def short_duration(duration: dt.timedelta) -> str:
    """Two units at most: "<1ms", "4ms", "1.2s", "3m12s", "2h05m", "3d4h"."""
    seconds = max(duration.total_seconds(), 0.0)
    if 0 < seconds < 0.0005:
        return "<1ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{second:02d}s"
    hours, minute = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minute:02d}m"
    days, hour = divmod(hours, 24)
    return f"{days}d{hour}h"


def clock(at: dt.datetime, now: dt.datetime | None = None) -> str:
    """ "14:02:11" today, "Thu 14:02" within a week, else with the date; now defaults to this moment."""
    local = at.astimezone()
    present = (now or dt.datetime.now(dt.UTC)).astimezone()
    if local.date() == present.date():
        return f"{local:%H:%M:%S}"
    if abs(local - present) < 6 * _DAY:
        return f"{local:%a %H:%M}"
    if local.year == present.year:
        return f"{local:%d %b %H:%M}"
    return f"{local:%d %b %Y}"


def ago(at: dt.datetime, now: dt.datetime | None = None) -> str:
    """ "3m12s ago"."""
    return f"{short_duration((now or dt.datetime.now(dt.UTC)) - at)} ago"
