"""Calling an ASGI application as something that stands somewhere and has a token, or has none."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

HERE = "http://localhost:8000"
TOKENS = {
    "reader": "reads-and-nothing-else-0000",
    "writer": "writes-and-nothing-else-000",
    "viewer": "payloads-and-nothing-else-0",
    "clerk": "reads-and-writes-0000000000",
    "auditor": "reads-with-payloads-0000000",
    "ann": "may-do-everything-000000000",
}
SCOPES = {
    "reader": "read",
    "writer": "write",
    "viewer": "payloads",
    "clerk": "read,write",
    "auditor": "read,payloads",
    "ann": "read,write,payloads",
}


def token_file(directory: Path, lines: str | None = None) -> Path:
    """A file of tokens that may be used; those of `TOKENS` unless `lines` says what it holds."""
    path = directory / "tokens"
    path.touch(mode=0o600)
    path.write_text(
        lines
        if lines is not None
        else "".join(f"{name} {SCOPES[name]} {token}\n" for name, token in TOKENS.items())
    )
    return path


def bearer(name: str) -> dict[str, str]:
    """The header of a token of `TOKENS`."""
    return {"Authorization": f"Bearer {TOKENS[name]}"}


@asynccontextmanager
async def calling(
    app: Any,
    who: str | None = None,
    *,
    base: str = HERE,
    peer: str | None = "127.0.0.1",
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client that calls `app` with the token of `who`, from the address `peer`."""
    transport = httpx.ASGITransport(app, client=(peer, 5555) if peer is not None else None)  # type: ignore[arg-type]
    given = (bearer(who) if who is not None else {}) | dict(headers or {})
    async with httpx.AsyncClient(transport=transport, base_url=base, headers=given, timeout=30) as http:
        yield http
