"""The gate: every request passes it, and every route is closed until a token opens it.

First the door (`door.py`), then the token, then the caller's rate; and once the route is known, its scope. A route
that names no scope is refused to everybody, so that one which was forgotten lets nobody in. Without any tokens the
caller is this machine, and may do everything.
"""

import math
from typing import Final

import msgspec

from zart.http.door import check_door
from zart.http.options import HttpOptions
from zart.http.problems import FORBIDDEN, TOO_MANY, UNAUTHORIZED, Refused
from zart.http.rates import Rates
from zart.http.tokens import SCOPES, Scope, Tokens

_CHALLENGE: Final = 'Bearer realm="zart"'


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. `name` is the token's, the author of what it does; None: nobody in particular."""

    name: str | None
    scopes: frozenset[Scope]


_THIS_MACHINE: Final = Caller(name=None, scopes=SCOPES)
_PROBE: Final = Caller(name=None, scopes=frozenset())
"""Whoever looks at whether the service lives, where that is open to all."""


class Gate:
    """Decides over requests by their headers, their address, and the route's scope."""

    def __init__(self, tokens: Tokens | None, options: HttpOptions) -> None:
        self._tokens = tokens
        self._options = options
        self._rates = Rates(options.rate, options.burst)

    @property
    def has_tokens(self) -> bool:
        return self._tokens is not None

    def admit(self, headers: list[tuple[bytes, bytes]], peer: str | None, *, probe: bool) -> Caller:
        """Who asks. `probe`: it asks for what may be open to all. Raises Refused."""
        check_door(headers, peer, with_tokens=self.has_tokens, hosts=self._options.hosts)
        if self._tokens is None:
            self._limit(f"address {peer}")
            return _THIS_MACHINE
        presented = _bearer(headers)
        if presented is None:
            self._limit(f"address {peer}")
            if probe and self._options.open_probes:
                return _PROBE
            raise Refused(
                UNAUTHORIZED,
                "give a token: Authorization: Bearer ...",
                headers={"WWW-Authenticate": _CHALLENGE},
            )
        token = self._tokens.find(presented)
        if token is None:
            self._limit(f"address {peer}")  # guessing is slow
            raise Refused(
                UNAUTHORIZED,
                "this is no token of this service",
                headers={"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_token"'},
            )
        self._limit(f"token {token.name}")
        return Caller(name=token.name, scopes=token.scopes)

    def check_scope(self, caller: Caller, scope: object) -> None:
        """Raise Refused unless the caller may use a route with this scope."""
        if scope == "probe":
            if caller is _PROBE:
                return
            scope = "read"
        if scope not in SCOPES:
            raise Refused(
                FORBIDDEN, "this route has no scope, so nobody may use it: that is a fault of the service"
            )
        if scope not in caller.scopes:
            raise Refused(
                FORBIDDEN,
                f"this needs the scope {scope!r}, and the token {caller.name!r} has {_listed(caller)}",
                headers={"WWW-Authenticate": f'{_CHALLENGE}, error="insufficient_scope", scope="{scope}"'},
            )

    def _limit(self, who: str) -> None:
        if (seconds := self._rates.take(who)) > 0:
            raise Refused(
                TOO_MANY,
                f"more than {self._options.rate:g} requests a second: slow down",
                headers={"Retry-After": str(math.ceil(seconds))},
            )


def _bearer(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """The token of a request; None if it brings none, or several things that might be one."""
    given = [value for name, value in headers if name.lower() == b"authorization"]
    if len(given) != 1:
        return None
    scheme, _, token = given[0].strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" and token.strip() else None


def _listed(caller: Caller) -> str:
    return ", ".join(sorted(caller.scopes)) or "none"
