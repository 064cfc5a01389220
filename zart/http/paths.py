"""Paths as they were sent, with their percent signs: an id may hold any sign, `/` among them.

ASGI gives an application `path`, in which `%2F` has become `/`, so that it cannot be told from one that divides; and
`raw_path`, which not every host keeps up when it mounts an application under a prefix. The two together say which part
of the raw path is the application's own: the one that decodes to what is left of `path`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from zart.http.problems import MALFORMED, Refused

_SAFE_IN_SEGMENT: Final = "-._~!$&'()*+,;=:@"
_LONGEST: Final = 4096
"""Bytes of a raw path that are looked at: two ids of the greatest length, encoded, fit more than twice."""
_SLASHES: Final = re.compile(b"//+")


def own_path(scope: Mapping[str, Any]) -> str:
    """The path below where the application is mounted, encoded as it was sent."""
    path: str = scope["path"]
    root: str = (scope.get("root_path") or "").rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    path = path or "/"
    raw = _raw_path(scope)
    for alike in (_exactly, _but_for_slashes):
        if (found := _suffix(raw, path, alike)) is not None:
            return found
    return quote(path, safe=f"/{_SAFE_IN_SEGMENT}")


def sent_path(scope: Mapping[str, Any]) -> str:
    """The whole path as it was sent, for links and for the log: printable ASCII."""
    raw = _raw_path(scope)
    if raw and raw.isascii() and raw.decode("ascii").isprintable():
        return raw.decode("ascii")
    return quote(scope["path"], safe=f"/{_SAFE_IN_SEGMENT}")


def decode_segment(segment: str) -> str:
    """An id or a name out of a path. Raises Refused when it is no UTF-8."""
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise Refused(MALFORMED, "the path holds what is no UTF-8 once it is decoded") from None


def encode_segment(value: str) -> str:
    """An id or a name as a part of a path."""
    return quote(value, safe=_SAFE_IN_SEGMENT) if value not in (".", "..") else value.replace(".", "%2E")


def _raw_path(scope: Mapping[str, Any]) -> bytes:
    return bytes(scope.get("raw_path") or b"").partition(b"?")[0]


def _suffix(raw: bytes, path: str, alike: Callable[[bytes], bytes]) -> str | None:
    """The longest end of a raw path that begins with a slash and decodes to `path`."""
    if not raw.isascii() or len(raw) > _LONGEST:
        return None
    wanted = alike(path.encode(errors="surrogateescape"))
    start = raw.find(b"/")
    while start >= 0:
        if alike(unquote_to_bytes(raw[start:])) == wanted:
            return raw[start:].decode("ascii")
        start = raw.find(b"/", start + 1)
    return None


def _exactly(path: bytes) -> bytes:
    return path


def _but_for_slashes(path: bytes) -> bytes:
    """Some hosts take away a slash at the end, or put one there, and make one of several."""
    return _SLASHES.sub(b"/", path).rstrip(b"/")
