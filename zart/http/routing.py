"""The routes: one table, of which the server, the gate, the OpenAPI document and the reference are made.

A route is an `async def` whose parameters say what it takes: `call`, then the parts of its path by their names, then
`query` and `body`, each a Struct. It returns what its answer holds.

    @route("POST", "/executions/{execution_id}/cancel", scope="write")
    async def cancel(call: Call, execution_id: str, body: CancelBody) -> Changed:
        '''Cancel an execution.'''
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from zart.http.call import Call
from zart.http.tokens import Scope

T = TypeVar("T")

Method = Literal["GET", "POST", "DELETE"]
Needs = Scope | Literal["probe"]
"""What a caller must be allowed to do; `probe` is `read`, unless the service opens its probes to all."""

_PART: Final = re.compile(r"\{([a-z_]+)\}")


class Reply(Generic[T]):
    """An answer with another status than the route's own, or with headers of its own."""

    def __init__(
        self, content: T, *, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.content = content
        self.status = status
        self.headers: dict[str, str] = dict(headers or {})


def as_reply(answer: object) -> Reply[Any]:
    """What a route returned, as a `Reply`."""
    return answer if isinstance(answer, Reply) else Reply(answer)  # pyright: ignore[reportUnknownVariableType]


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """How a route reads its body."""

    kind: Any
    """A Struct, or Any for JSON of the caller's own."""
    required: bool
    example: Any


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table."""

    name: str
    method: Method
    path: str
    """Below the prefix, or below the application where `prefixed` is false."""
    prefixed: bool
    scope: Needs
    status: int
    """Of the answer, unless a `Reply` says another."""
    other: Mapping[int, str]
    """The other statuses of answers that are no errors, and what they mean."""
    problems: tuple[int, ...]
    """Statuses of errors beside those that every route may give."""
    parts: tuple[str, ...]
    query: type[msgspec.Struct] | None
    body: Body | None
    content: Any
    """What an answer holds: a Struct; None: not described."""
    media_type: str
    client: bool
    """Whether it asks the database."""
    dedup: bool
    """Whether it takes the header `Idempotency-Key`."""
    summary: str
    description: str
    answer: Callable[..., Awaitable[Any]]


class Routes:
    """A part of the table; modules make one each."""

    def __init__(self) -> None:
        self.routes: list[Route] = []

    def route(
        self,
        method: Method,
        path: str,
        *,
        scope: Needs,
        status: int = 200,
        other: Mapping[int, str] | None = None,
        problems: tuple[int, ...] = (),
        prefixed: bool = True,
        media_type: str = "application/json",
        client: bool = True,
        dedup: bool = False,
        body_required: bool = False,
        example: Any = None,
    ) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
        """Enter a function into the table; see the module's text."""

        def enter(answer: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            hints = get_type_hints(answer, include_extras=True)
            parts = tuple(_PART.findall(path))
            taken = [
                name for name in inspect.signature(answer).parameters if name not in ("call", "query", "body")
            ]
            if list(parts) != taken or hints.get("call") is not Call:
                raise TypeError(
                    f"{answer.__qualname__} takes {taken}, but {path!r} has the parts {list(parts)}"
                )
            summary, _, description = inspect.cleandoc(answer.__doc__ or "").partition("\n\n")
            body = (
                Body(kind=hints["body"], required=body_required, example=example) if "body" in hints else None
            )
            self.routes.append(
                Route(
                    name=answer.__name__,
                    method=method,
                    path=path,
                    prefixed=prefixed,
                    scope=scope,
                    status=status,
                    other=other or {},
                    problems=problems,
                    parts=parts,
                    query=hints.get("query"),
                    body=body,
                    content=_content(hints["return"]),
                    media_type=media_type,
                    client=client,
                    dedup=dedup,
                    summary=" ".join(summary.split()),
                    description=description,
                    answer=answer,
                )
            )
            return answer

        return enter


def _content(annotation: Any) -> Any:
    """The Struct that an answer holds; None for text."""
    if get_origin(annotation) is Reply:
        (annotation,) = get_args(annotation)
    return annotation if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct) else None


def methods_at(routes: Iterable[Route], prefix: str, path: str) -> set[str]:
    """The methods that the routes take at a path; none where there is nothing."""
    parts = path.rstrip("/").split("/")
    return {
        route.method for route in routes if _goes_with((prefix if route.prefixed else "") + route.path, parts)
    }


def allow(methods: Iterable[str]) -> str:
    """The header `Allow`: HEAD goes wherever GET does, and OPTIONS everywhere."""
    known = {*methods, "OPTIONS"}
    return ", ".join(sorted(known | {"HEAD"} if "GET" in known else known))


def _goes_with(template: str, parts: list[str]) -> bool:
    wanted = template.split("/")
    return len(wanted) == len(parts) and all(
        want == part or (want.startswith("{") and part != "")
        for want, part in zip(wanted, parts, strict=True)
    )
