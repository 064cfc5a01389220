"""One request on its way through the application, from its first header to its last byte and its line in the log."""

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from zart.http.bodies import Message
from zart.http.gate import Caller
from zart.http.paths import sent_path
from zart.http.problems import INTERNAL, MEDIA_TYPE, Refused, explain

_log = logging.getLogger("zart.http")

Send = Callable[[Message], Awaitable[None]]

HUNG_UP: Final = 499
"""What the log says of a request whose caller hung up."""
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_SAFE_HEADERS: Final = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

_encode: Final = msgspec.json.Encoder().encode


class Visit:
    """Sends the answer, with the headers that every answer has, and knows what became of it."""

    def __init__(self, scope: Mapping[str, Any], send: Send) -> None:
        self.headers: list[tuple[bytes, bytes]] = [
            (bytes(name), bytes(value)) for name, value in scope["headers"]
        ]
        self.path: str = sent_path(scope)
        self.method: str = scope["method"]
        self.request_id: str = self._read_id()
        self.caller: Caller | None = None
        self.status: int | None = None
        """Of the answer; None before it has begun."""
        self._send = send
        self._began = time.perf_counter()

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on. An answer to HEAD has the headers of one to GET, and no body."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [(b"x-request-id", self.request_id.encode()), *_SAFE_HEADERS]
            message = {**message, "headers": [*message.get("headers", ()), *own]}
        elif message["type"] == "http.response.body" and self.method == "HEAD":
            message = {**message, "body": b""}
        await self._send(message)

    async def answer(
        self, status: int, content: bytes, media_type: str | None, headers: Mapping[str, str]
    ) -> None:
        """Send a whole answer."""
        await self.send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    *_about(content, media_type),
                    *((name.lower().encode(), value.encode()) for name, value in headers.items()),
                ],
            }
        )
        await self.send({"type": "http.response.body", "body": content})

    def problem(self, error: Exception) -> tuple[int, bytes, Mapping[str, str]]:
        """The answer that an error means: status, body, headers. What is a fault of ours goes to the log."""
        refused = explain(error)
        if error is not refused and refused.kind.status >= INTERNAL.status:
            _log.error(
                "request %s, %s %s: %s: %s",
                self.request_id,
                self.method,
                self.path,
                type(error).__name__,
                error,
                exc_info=error if refused.kind is INTERNAL else None,
            )
        problem = refused.problem(instance=self.path, request_id=self.request_id)
        return problem.status, _encode(problem), refused.headers

    async def refuse(self, error: Refused | Exception) -> None:
        """Answer with a problem."""
        status, content, headers = self.problem(error)
        await self.answer(status, content, MEDIA_TYPE, headers)

    def note(self) -> None:
        """Write its line into the log: what was asked, by whom, what came of it. No query and no body."""
        level = logging.DEBUG if self.path.endswith(("/healthz", "/readyz", "/metrics")) else logging.INFO
        if _log.isEnabledFor(level):
            _log.log(
                level,
                "request %s, %s %s%s: %s in %.1f ms",
                self.request_id,
                self.method,
                self.path,
                f" by {self.caller.name}" if self.caller is not None and self.caller.name else "",
                self.status or HUNG_UP,
                (time.perf_counter() - self._began) * 1000,
            )

    def _read_id(self) -> str:
        """The caller's own id for this request, if it is one, or a new one."""
        given = [value for name, value in self.headers if name.lower() == b"x-request-id"]
        if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
            return given[0].decode("ascii")
        return uuid.uuid4().hex


def _about(content: bytes, media_type: str | None) -> list[tuple[bytes, bytes]]:
    """The headers of a body; without a media type there is none."""
    if media_type is None:
        return []
    return [(b"content-type", media_type.encode()), (b"content-length", str(len(content)).encode())]
