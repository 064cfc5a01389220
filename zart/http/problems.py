"""What went wrong, as RFC 9457 has it: `application/problem+json`, the same for every error of every route.

`type` is what a program looks at, `detail` is a sentence for a person. Each of zart's errors has its line in
`_OF_ERRORS`; what is not in it is a fault of ours, of which the caller learns the request's id and nothing else.
"""

from collections.abc import Mapping
from typing import Annotated, Final, final

import msgspec

from zart import errors

MEDIA_TYPE: Final = "application/problem+json"


class Kind(msgspec.Struct, frozen=True):
    """One sort of problem: the last part of its `type`, its title and its status."""

    name: str
    title: str
    status: int

    @property
    def type(self) -> str:
        return f"urn:zart:problem:{self.name}"


MALFORMED: Final = Kind("malformed-request", "The request cannot be read", 400)
UNAUTHORIZED: Final = Kind("unauthorized", "A valid token is needed", 401)
FORBIDDEN: Final = Kind("forbidden", "This token may not do that", 403)
NOT_LOCAL: Final = Kind("not-local", "Without tokens only this machine is answered", 403)
WRONG_ORIGIN: Final = Kind("wrong-origin", "Another site's page may not ask this", 403)
WRONG_HOST: Final = Kind("wrong-host", "This service is not called so", 421)
NO_ROUTE: Final = Kind("no-route", "There is nothing here", 404)
NOT_FOUND: Final = Kind("execution-not-found", "There is no such execution", 404)
NO_RULE: Final = Kind("pause-not-found", "There is no such pause", 404)
NO_METHOD: Final = Kind("method-not-allowed", "That method does not go with this path", 405)
TOO_SLOW: Final = Kind("body-too-slow", "The body did not arrive in time", 408)
CONFLICT: Final = Kind("execution-conflict", "The id stands for something else", 409)
FINISHED: Final = Kind("execution-finished", "The execution has ended", 409)
WRONG_STATE: Final = Kind("execution-in-another-state", "The execution is not in a state for that", 409)
TOO_LARGE: Final = Kind("body-too-large", "The body is too large", 413)
WRONG_TYPE: Final = Kind("unsupported-media-type", "The body must be JSON", 415)
REFUSED: Final = Kind("refused", "The request cannot be carried out as it is", 422)
CANNOT_STORE: Final = Kind("cannot-be-stored", "The value cannot be stored", 422)
MISFIT: Final = Kind("payload-misfit", "Stored data does not fit", 422)
TOO_MANY: Final = Kind("too-many-requests", "Too many requests", 429)
INTERNAL: Final = Kind("internal", "Something went wrong here", 500)
NO_DATABASE: Final = Kind("database-unreachable", "The database does not answer", 503)
WRONG_SCHEMA: Final = Kind("schema-mismatch", "The tables are of another version", 503)
BUSY: Final = Kind("busy", "Too many requests wait", 503)

_OF_ERRORS: Final[tuple[tuple[type[Exception], Kind], ...]] = (
    (errors.ExecutionNotFound, NOT_FOUND),
    (errors.ExecutionConflict, CONFLICT),
    (errors.ExecutionFinished, FINISHED),
    (errors.ExecutionPruned, FINISHED),
    (errors.ExecutionBlocked, WRONG_STATE),
    (errors.ExecutionCancelled, WRONG_STATE),
    (errors.ExecutionFailed, WRONG_STATE),
    (errors.NonDeterminismError, WRONG_STATE),
    (errors.SerializationError, CANNOT_STORE),
    (errors.PayloadError, MISFIT),
    (errors.UsageError, REFUSED),
    (errors.SchemaError, WRONG_SCHEMA),
    # zart's DatabaseUnreachable is one; it comes before what only the engine raises.
    (ConnectionError, NO_DATABASE),
    # Raised to waits that a client's end cut short, and never by the client of a request that goes on.
    (errors.ResultTimeout, BUSY),
    # What only bodies and steps see: here it would be a fault of ours.
    (errors.StepFailed, INTERNAL),
    (errors.StepTimeout, INTERNAL),
    (errors.StepInterrupted, INTERNAL),
    (errors.EventTimeout, INTERNAL),
    (errors.NonRetryable, INTERNAL),
    (errors.RetryAfter, INTERNAL),
)
_TOLD_PLAINLY: Final = {
    INTERNAL: "this is a fault of the service, not of your request; its log has the request's id",
    NO_DATABASE: "the database cannot be reached at the moment: try again",
    WRONG_SCHEMA: "the database has tables of another version than this service: an operator must migrate",
}
"""What callers are told in place of an error's own text, which the log has."""
_AGAIN: Final = {NO_DATABASE: "2", BUSY: "1"}
"""Seconds after which it makes sense to ask again."""


@final
class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error, by RFC 9457."""

    type: Annotated[str, msgspec.Meta(examples=["urn:zart:problem:execution-not-found"])]
    title: Annotated[str, msgspec.Meta(examples=["There is no such execution"])]
    status: Annotated[int, msgspec.Meta(ge=400, le=599, examples=[404])]
    detail: Annotated[str, msgspec.Meta(examples=["there is no execution 'order-4711'"])]
    instance: Annotated[
        str,
        msgspec.Meta(description="The path that was asked for.", examples=["/api/v1/executions/order-4711"]),
    ]
    request_id: Annotated[
        str,
        msgspec.Meta(description="Also in X-Request-ID, and in the service's log.", examples=["f3a9c1d2"]),
    ]
    execution_id: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="The execution that it is about.", examples=["order-4711"]),
    ] = msgspec.UNSET
    field: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="The place in the body or query that it is about.", examples=["$.priority"]),
    ] = msgspec.UNSET


class Refused(Exception):  # noqa: N818 (it is an answer)
    """Ends a request with a problem."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        execution_id: str | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail
        self.headers: dict[str, str] = dict(headers or {})
        self.execution_id = execution_id
        self.field = field

    def problem(self, *, instance: str, request_id: str) -> Problem:
        return Problem(
            type=self.kind.type,
            title=self.kind.title,
            status=self.kind.status,
            detail=self.detail,
            instance=instance,
            request_id=request_id,
            execution_id=msgspec.UNSET if self.execution_id is None else self.execution_id,
            field=msgspec.UNSET if self.field is None else self.field,
        )


def kind_of(error: Exception) -> Kind:
    """What sort of problem an error is to whoever asked."""
    return next((kind for sort, kind in _OF_ERRORS if isinstance(error, sort)), INTERNAL)


def explain(error: Exception) -> Refused:
    """An error as the answer to a request."""
    if isinstance(error, Refused):
        return error
    kind = kind_of(error)
    again = _AGAIN.get(kind)
    return Refused(
        kind,
        _TOLD_PLAINLY.get(kind) or str(error),
        headers={} if again is None else {"Retry-After": again},
        execution_id=getattr(error, "execution_id", None),
        field=getattr(error, "path", None),
    )


def no_route() -> Refused:
    return Refused(NO_ROUTE, "there is no such path: the document at openapi.json lists those that there are")
