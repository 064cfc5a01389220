"""Restate's side: a client of its HTTP ingress, the Restate server, and the process that serves the handlers.

The server is the one that npm has installed in this environment, with its defaults, in a temporary directory: it keeps
its own log there, in RocksDB, and syncs it to the disk; PostgreSQL has no part in it.
"""

# mypy: disable-error-code="import-not-found, unused-ignore"

import asyncio
import contextlib
import importlib.metadata
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from tests.benchmarks import latencies
from tests.benchmarks.rounds import answer, closed_loop, end, helper, requests

STARTS_WITHIN = 60.0
"""Seconds."""
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Ingress:
    """Calls handlers, over connections that are kept: one for each call under way."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Streams] = []

    async def call(self, path: str, argument: Any = None) -> Any:
        """The handler's result."""
        reader, writer = (
            self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        )
        body = b"" if argument is None else json.dumps(argument).encode()
        content = b"" if argument is None else b"Content-Type: application/json\r\n"
        writer.write(
            b"POST /%s HTTP/1.1\r\nHost: 127.0.0.1\r\n%sContent-Length: %d\r\n\r\n%s"
            % (path.encode(), content, len(body), body)
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status = int(head.split(" ", 2)[1])
        answered = await _body(reader, head)
        if status >= 300:
            raise AssertionError(f"{path} answered {status}: {answered.decode()}")
        self._idle.append((reader, writer))
        return json.loads(answered) if answered else None


async def _body(reader: asyncio.StreamReader, head: str) -> bytes:
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def server_program() -> Path:
    """The one for this machine, as npm has chosen it. npm's script is passed by: it is to be ended by its own pid."""
    found = sorted(Path(sys.prefix).glob("node_modules/@restatedev/restate-server-*/bin/restate-server"))
    if not found:
        raise RuntimeError("npm has installed no restate-server for this machine")
    return found[0]


@contextlib.contextmanager
def server(ingress: int, admin: int, node: int) -> Iterator[None]:
    """It answers on these ports of 127.0.0.1."""
    with tempfile.TemporaryDirectory(prefix="restate-bench-", ignore_cleanup_errors=True) as directory:
        settings = {
            "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
            "RESTATE_BIND_ADDRESS": f"127.0.0.1:{node}",
            "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{node}",
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_LOG_FILTER": "error,octocrab=off",
            "RESTATE_NODE_NAME": "benchmark",
        }
        process = subprocess.Popen(
            [server_program(), "--no-logo", "--base-dir", directory],
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            text=True,
            cwd=directory,
        )
        try:
            until_answered(f"http://127.0.0.1:{admin}/health", process)
            yield
        finally:
            process.terminate()
            end(process, within=5)


def until_answered(url: str, process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.05)


def register(admin: int, service: int) -> None:
    """Tell the server of the service. It may not be ready for that at once."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{admin}/deployments",
        json.dumps({"uri": f"http://127.0.0.1:{service}"}).encode(),
        {"Content-Type": "application/json"},
    )
    until = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30):
                return
        except OSError as error:
            if time.monotonic() > until:
                told = error.read().decode() if isinstance(error, urllib.error.HTTPError) else str(error)
                raise RuntimeError(f"the deployment is refused: {told}") from error
            time.sleep(0.1)


async def answer_to(ingress: Ingress, request: dict[str, Any]) -> dict[str, Any]:
    match request:
        case {"do": "round"}:
            return {
                "seconds": await closed_loop(
                    lambda number: ingress.call("benchmark/workflow", number),
                    request["concurrency"],
                    request["executions"],
                )
            }
        case {"do": "latencies", "of": "result"}:
            return await latencies.of_results(
                lambda: ingress.call("benchmark/stamped"), request["count"], request["pause"]
            )
        case _:

            async def start() -> tuple[str, "asyncio.Task[Any]"]:
                key = f"waiter-{next(_numbers)}"
                return key, asyncio.create_task(ingress.call(f"waiter/{key}/run"))

            async def resumed_at(handle: tuple[str, "asyncio.Task[Any]"]) -> float:
                at: float = await handle[1]
                return at

            return await latencies.of_events(
                start,
                lambda handle: ingress.call(f"waiter/{handle[0]}/go"),
                resumed_at,
                request["count"],
                request["pause"],
            )


_numbers = itertools.count()


async def main(ingress: int, version: str) -> None:
    calls = Ingress(ingress)
    until = time.monotonic() + STARTS_WITHIN
    while True:  # the ingress learns of a new service a little later
        try:
            await calls.call("benchmark/workflow", 0)
            break
        except (AssertionError, OSError):
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.1)
    answer(
        versions={
            "restate-server": version,
            **{name: importlib.metadata.version(name) for name in ("restate-sdk", "hypercorn", "uvloop")},
        }
    )
    asked = requests()
    while (request := await asyncio.to_thread(next, asked, None)) is not None:
        answer(**await answer_to(calls, request))


if __name__ == "__main__":
    told = subprocess.run([server_program(), "--version"], capture_output=True, text=True, check=True).stdout
    ingress_port, admin_port, node_port, service_port = free_ports(4)
    with (
        server(ingress_port, admin_port, node_port),
        helper("tests.benchmarks.sides.restate_service", str(service_port)),
    ):
        register(admin_port, service_port)
        uvloop.run(main(ingress_port, told.split()[1]))
