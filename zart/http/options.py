"""How much the HTTP API takes, and whom it answers: the settings beside those that `create_app` names."""

import datetime as dt
from typing import Final, final

import msgspec

from zart.durations import Duration, parse_duration
from zart.errors import UsageError

_PAYLOAD: Final = 1 << 20
"""The largest value that Zart stores, in bytes of JSON."""
_AROUND_A_PAYLOAD: Final = 1 << 16


@final
class HttpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller may ask for at most. The defaults suit a service of one team."""

    max_body: int = _PAYLOAD + _AROUND_A_PAYLOAD
    """Bytes of a request's body: the largest payload, and what stands around it."""
    max_depth: int = 520
    """How deep the lists and objects of a body may be nested; a payload itself goes to 512."""
    body_timeout: Duration = "30s"
    """How long a caller may take to send its body."""
    max_wait: Duration = "60s"
    """The longest wait for a result; who asks for more waits so long."""
    max_waiting: int = 1000
    """So many requests may wait for results at once."""
    rate: float = 500.0
    """Requests per second for each token; without tokens, and for wrong ones, for each address."""
    burst: int = 1000
    """So many may come at once before `rate` counts."""
    hosts: tuple[str, ...] = ()
    """The names by which this service may be called, such as "zart.example.com". Empty: any with a token, and only
    those of the loopback interface without."""
    open_probes: bool = False
    """Whether /healthz and /readyz answer without a token, for what watches a service and cannot carry one."""

    def __post_init__(self) -> None:
        given: dict[str, object] = {name: getattr(self, name) for name in self.__struct_fields__}
        for name in ("max_body", "max_depth", "max_waiting", "burst"):
            _check(name, given[name], _is_count(given[name]), "a whole number from 1")
        _check("rate", given["rate"], _is_rate(given["rate"]), "a number of requests per second above 0")
        _check("hosts", given["hosts"], _are_names(given["hosts"]), 'names, such as ("zart.example.com",)')
        for name in ("body_timeout", "max_wait"):
            parse_duration(getattr(self, name), what=name)

    @property
    def longest_body(self) -> dt.timedelta:
        """`body_timeout`, as a timedelta."""
        return parse_duration(self.body_timeout, what="body_timeout")

    @property
    def longest_wait(self) -> dt.timedelta:
        """`max_wait`, as a timedelta."""
        return parse_duration(self.max_wait, what="max_wait")


def _check(name: str, value: object, fits: bool, accepted: str) -> None:  # noqa: FBT001 (a fact of the value)
    if not fits:
        raise UsageError(f"{name} is {value!r}, but it must be {accepted}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_rate(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _are_names(value: object) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(name, str) and name for name in value)  # pyright: ignore[reportUnknownVariableType]
