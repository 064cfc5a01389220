"""Two calls of a web service, one after the other: from a postal code to a town, and from there to its breweries.

Run it with `make example-brewery_finder`. The service is a stub in this process, which refuses its second call; a real
one differs in its address. Each call is a step, so it is made once, and again when it fails; what the service says is
read into Structs, and a town that it does not know is an error that is not tried again.
"""

import asyncio
import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

import zart
from examples.stage import stage
from zart import durable, step


class Place(msgspec.Struct):
    postal_code: str
    town: str


class Brewery(msgspec.Struct):
    name: str
    since: int


class Found(msgspec.Struct):
    """What an execution returns."""

    town: str
    breweries: list[Brewery]


class Service:
    """Where the web service is."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str) -> bytes:
        try:
            with urllib.request.urlopen(f"{self.address}{path}", timeout=10) as answer:
                body: bytes = answer.read()
                return body
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    raise zart.NonRetryable(f"the service does not know {path}") from None
                raise ConnectionError(f"{error.code} at {path}") from None


@step("look-up-place", retry="exponential(4, 100ms)", timeout="15s")
def look_up_place(postal_code: str) -> Place:
    """A plain function: it runs in a thread of its own."""
    return msgspec.json.decode(zart.resource(Service).get(f"/places/{postal_code}"), type=Place)


@step("list-breweries", retry="exponential(4, 100ms)", timeout="15s")
def list_breweries(town: str) -> list[Brewery]:
    return msgspec.json.decode(zart.resource(Service).get(f"/breweries/{town}"), type=list[Brewery])


@durable("brewery-finder")
async def find_breweries(postal_code: str) -> Found:
    place = await look_up_place(postal_code)
    breweries = await list_breweries(place.town)
    return Found(town=place.town, breweries=sorted(breweries, key=lambda brewery: brewery.since))


# ------------------------------------------------------------ the stub

ANSWERS: dict[str, Any] = {
    "/places/96049": {"postal_code": "96049", "town": "Bamberg"},
    "/breweries/Bamberg": [
        {"name": "Spezial", "since": 1536},
        {"name": "Schlenkerla", "since": 1405},
        {"name": "Klosterbräu", "since": 1533},
    ],
}


class Stub(BaseHTTPRequestHandler):
    calls = 0

    def do_GET(self) -> None:
        Stub.calls += 1
        status = 503 if Stub.calls == 2 else 200 if self.path in ANSWERS else 404
        print(f"  GET {self.path}  {status}", flush=True)
        self.send_response(status)
        self.end_headers()
        if status == 200:
            self.wfile.write(json.dumps(ANSWERS[self.path]).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """What it has to say is said above."""


@contextlib.asynccontextmanager
async def service() -> AsyncIterator[Service]:
    """Opened once for each worker; `zart.resource(Service)` is what it yields."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Stub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Service(f"http://127.0.0.1:{server.server_port}")
        finally:
            await asyncio.to_thread(server.shutdown)
            thread.join()


registry = zart.Registry(find_breweries, lifespan=service)


async def main() -> None:
    async with stage() as client, zart.Worker(client, registry):
        found = await client.start_and_wait(find_breweries, "96049", timeout="30s")
        for brewery in found.breweries:
            print(f"{found.town}: {brewery.name}, since {brewery.since}")
        try:
            await client.start_and_wait(find_breweries, "00000", timeout="30s")
        except zart.ExecutionFailed as failed:
            print(f"failed: {failed.failure.message}")


if __name__ == "__main__":
    asyncio.run(main())
