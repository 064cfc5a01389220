"""What callers send: one Struct for each body and each query. What a Struct does not name is refused."""

import datetime as dt
from typing import Annotated, Any, Final, Literal

import msgspec

from zart.http.views import Status, Time

_REASON: Final = msgspec.Meta(
    description="Kept in the history, with who did it.", examples=["the customer asked for it"]
)
_DURATION: Final = 'seconds, or text such as "500ms", "30s", "1h30m", "2d"'
Reason = Annotated[str | None, _REASON]


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A body or a query with these fields, and no others."""


class StartBody(Strict, frozen=True, kw_only=True):
    """Which function to start, with what, and when."""

    name: Annotated[str, msgspec.Meta(description="The durable function's.", examples=["onboarding"])]
    id: Annotated[
        str | None,
        msgspec.Meta(
            description="Your own id: starting the same again is harmless. Without one it gets a UUID.",
            examples=["order-4711"],
        ),
    ] = None
    data: Annotated[
        Any,
        msgspec.Meta(
            description="The function's input. Leave it out for one that takes none.",
            examples=[{"user_id": "u-1", "email": "ann@example.com"}],
        ),
    ] = msgspec.UNSET
    version: str | None = None
    queue: str | None = None
    priority: int | None = None
    delay: Annotated[
        str | float | None,
        msgspec.Meta(description=f"How long to wait before: {_DURATION}.", examples=["30s"]),
    ] = None
    at: Annotated[
        Time | None, msgspec.Meta(description="When to start, with a time zone. Not with `delay`.")
    ] = None
    on_conflict: Annotated[
        Literal["raise", "return"],
        msgspec.Meta(
            description="`return`: an execution with another input under this id is taken as it is."
        ),
    ] = "raise"


class ReasonBody(Strict, frozen=True, kw_only=True):
    """Why."""

    reason: Reason = None


class CancelBody(Strict, frozen=True, kw_only=True):
    """Why, and how."""

    reason: Reason = None
    force: Annotated[bool, msgspec.Meta(description="End it here and now, without its cleanup.")] = False


class ResumeBody(Strict, frozen=True, kw_only=True):
    """Why, and on what terms."""

    reason: Reason = None
    accept_arguments: Annotated[
        bool,
        msgspec.Meta(
            description="Take recorded steps as they are, though the code calls them otherwise now."
        ),
    ] = False


class RetryStepBody(Strict, frozen=True, kw_only=True):
    """Which step gets a new budget of attempts."""

    key: Annotated[str, msgspec.Meta(description="As the history shows it.", examples=["charge"])]
    reason: Reason = None


class RestartBody(Strict, frozen=True, kw_only=True):
    """With what the new run begins."""

    data: Annotated[Any, msgspec.Meta(description="Another input. Leave it out to keep the one it had.")] = (
        msgspec.UNSET
    )
    reason: Reason = None


class RerunBody(Strict, frozen=True, kw_only=True):
    """Which steps are run again in the new run."""

    steps: Annotated[
        list[str],
        msgspec.Meta(
            min_length=1, description="Their keys, as the history shows them.", examples=[["charge"]]
        ),
    ]
    reason: Reason = None


class PauseBody(Strict, frozen=True, kw_only=True):
    """What to hold back: one execution, a function's, or steps."""

    execution_id: Annotated[str | None, msgspec.Meta(examples=["order-4711"])] = None
    name: Annotated[str | None, msgspec.Meta(description="A function's name.", examples=["onboarding"])] = (
        None
    )
    step: Annotated[
        str | None, msgspec.Meta(description="A pattern of step names.", examples=["charge-*"])
    ] = None
    reason: Reason = None
    expires: Annotated[
        str | float | None,
        msgspec.Meta(
            description=f"When the pause ends by itself: a time with its zone, or {_DURATION}.",
            examples=["2h"],
        ),
    ] = None


class PruneBody(Strict, frozen=True, kw_only=True):
    """What is to go."""

    older_than: Annotated[
        str | float,
        msgspec.Meta(description=f"Of those that ended longer ago: {_DURATION}.", examples=["30d"]),
    ]
    statuses: Annotated[
        list[Literal["completed", "failed", "cancelled"]] | None,
        msgspec.Meta(description="Of those in these statuses; without it, of all three."),
    ] = None
    keep_ids: Annotated[
        str | float | None,
        msgspec.Meta(
            description="Keep the ids until they are as old as that, so that a start which is sent again runs nothing.",
            examples=["90d"],
        ),
    ] = None
    dry_run: Annotated[bool, msgspec.Meta(description="Change nothing, and tell what would go.")] = False


class ListQuery(Strict, frozen=True, kw_only=True):
    """Which executions."""

    name: Annotated[str | None, msgspec.Meta(description="Of this function.", examples=["onboarding"])] = None
    status: Annotated[Status | None, msgspec.Meta(description="In this status.")] = None
    id_prefix: Annotated[str | None, msgspec.Meta(description="Whose ids begin so.", examples=["order-"])] = (
        None
    )
    since: Annotated[Time | None, msgspec.Meta(description="Created at this time or later.")] = None
    until: Annotated[Time | None, msgspec.Meta(description="Created before this time.")] = None
    after: Annotated[
        str | None, msgspec.Meta(description="The last id of the page before.", examples=["order-4711"])
    ] = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=500, description="How many at most.")] = 50


class HistoryQuery(Strict, frozen=True, kw_only=True):
    """Which run."""

    run_id: Annotated[str | None, msgspec.Meta(description="Default: the run of today.")] = None


class ResultQuery(Strict, frozen=True, kw_only=True):
    """How long to wait."""

    timeout: Annotated[
        str,
        msgspec.Meta(
            description=f"How long to wait for the end: {_DURATION}. At most what the service allows.",
            examples=["30s"],
        ),
    ] = "0s"


class ReasonQuery(Strict, frozen=True, kw_only=True):
    """Why."""

    reason: Reason = None


def read_expiry(expires: str | float | None) -> str | float | dt.datetime | None:
    """A time if it is written as one; anything else is a length of time, for the client to check."""
    if not isinstance(expires, str):
        return expires
    try:
        return msgspec.convert(expires, dt.datetime)
    except msgspec.ValidationError:
        return expires


def read_duration(text: str) -> str | float:
    """A length of time out of a query, where a plain number means seconds as it does elsewhere."""
    try:
        return float(text)
    except ValueError:
        return text
