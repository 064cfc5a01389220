"""What a check has found."""

from typing import Literal

import msgspec

Level = Literal["ok", "info", "warning", "error"]
"""`error`: Zart cannot do its work, or soon will not. `warning`: somebody should look. `info`: worth knowing."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report."""

    check: str
    level: Level
    found: str
    remedy: str | None = None
    """What to do next."""


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, level="ok", found=found)


def info(check: str, found: str, remedy: str | None = None) -> Finding:
    return Finding(check=check, level="info", found=found, remedy=remedy)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, level="warning", found=found, remedy=remedy)


def error(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, level="error", found=found, remedy=remedy)
