"""Who may stand at the door at all, before anybody asks for a token.

Without tokens the service answers this machine alone: the peer's address and the name in `Host` must be those of the
loopback interface. The second closes the way of DNS rebinding, by which a page of another site gets a browser to call
127.0.0.1 under that site's name. What came through a proxy came from elsewhere, though the peer is near. All this
holds wherever the application is mounted: in a public one without tokens it refuses everybody.

With tokens and without them a browser's page of another site is refused by its `Origin`.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from zart.http.problems import MALFORMED, NOT_LOCAL, WRONG_HOST, WRONG_ORIGIN, Refused

_HOST: Final = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\s,]+)(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN: Final = re.compile(r"(?P<scheme>https?)://(?P<place>.+)")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_THROUGH_A_PROXY: Final = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via")
_OTHER_SITES: Final = (b"cross-site", b"same-site")

Headers = Iterable[tuple[bytes, bytes]]


class Place(NamedTuple):
    """A host and its port; None where none is named."""

    host: str
    port: int | None


def check_door(
    headers: list[tuple[bytes, bytes]], peer: str | None, *, with_tokens: bool, hosts: tuple[str, ...]
) -> None:
    """Raise Refused unless a request with these headers, from this address, may come in."""
    asked = _read_host(headers)
    if with_tokens:
        if hosts and asked.host not in {_plain(host) for host in hosts}:
            raise Refused(WRONG_HOST, f"this service does not answer to the name {asked.host!r}")
    else:
        _check_near(headers, peer, asked, hosts)
    _check_origin(headers, asked)


def is_loopback(host: str | None) -> bool:
    """Whether an address, or the name localhost, is this machine and no other."""
    if host is None:
        return False
    name = _plain(host)
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _check_near(
    headers: list[tuple[bytes, bytes]], peer: str | None, asked: Place, hosts: tuple[str, ...]
) -> None:
    remedy = (
        "set a token with --token-file or ZART_HTTP_TOKEN (in an application: create_app(token_file=...))"
    )
    if not is_loopback(peer):
        raise Refused(NOT_LOCAL, f"this service has no tokens, so it answers its own machine alone: {remedy}")
    if not (is_loopback(asked.host) or asked.host in {_plain(host) for host in hosts}):
        raise Refused(
            NOT_LOCAL,
            f"this service has no tokens, so it is called localhost or 127.0.0.1, not {asked.host!r}: {remedy}",
        )
    for name, _ in headers:
        if name.lower() in _THROUGH_A_PROXY:
            shown = name.decode("latin-1")
            raise Refused(
                NOT_LOCAL, f"this service has no tokens, and this came through a proxy ({shown}): {remedy}"
            )


def _read_host(headers: list[tuple[bytes, bytes]]) -> Place:
    found = _values(headers, b"host")
    if len(found) != 1:
        raise Refused(MALFORMED, f"the request has {len(found)} Host headers, and one is needed")
    place = _read_place(found[0])
    if place is None:
        raise Refused(MALFORMED, "the Host header is no host")
    return place


def _check_origin(headers: list[tuple[bytes, bytes]], asked: Place) -> None:
    if any(site.strip().lower() in _OTHER_SITES for site in _values(headers, b"sec-fetch-site")):
        raise Refused(WRONG_ORIGIN, "a page of another site asked this")
    for origin in _values(headers, b"origin"):
        match = _ORIGIN.fullmatch(origin.decode("latin-1").lower())
        place = None if match is None else _read_place(match["place"].encode("latin-1"))
        if match is None or place is None:
            raise Refused(WRONG_ORIGIN, "the Origin header is no origin of a page of this service")
        default = _DEFAULT_PORTS[match["scheme"]]
        # A proxy that ends TLS asks on without the port: either scheme's own counts as none.
        if place.host != asked.host or (place.port or default) not in _ports(asked, default):
            raise Refused(WRONG_ORIGIN, "a page of another site asked this")


def _ports(asked: Place, default: int) -> tuple[int, ...]:
    return (default,) if asked.port is None else (asked.port,)


def _read_place(value: bytes) -> Place | None:
    match = _HOST.fullmatch(value.decode("latin-1").strip())
    if match is None:
        return None
    port = match["port"]
    return Place(_plain(match["name"]), None if port is None else int(port))


def _plain(host: str) -> str:
    return host.lower().removeprefix("[").removesuffix("]").removesuffix(".")


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]
