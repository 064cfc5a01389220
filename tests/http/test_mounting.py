"""The application inside another one: FastAPI, Starlette, Litestar."""

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager

import fastapi
import litestar
import pytest
import starlette.applications
import starlette.routing
from litestar.handlers import asgi

from tests.support.calling import bearer, calling, token_file
from zart import Client, UsageError
from zart.http import create_app


def in_fastapi(api, lifespan=None):
    host = fastapi.FastAPI(lifespan=lifespan)

    @host.get("/hello")
    async def hello():
        return "hello"

    host.mount("/zart", api)
    return host


def in_starlette(api, lifespan=None):
    return starlette.applications.Starlette(
        routes=[starlette.routing.Mount("/zart", app=api)], lifespan=lifespan
    )


def in_nested_starlette(api, lifespan=None):
    inner = starlette.applications.Starlette(routes=[starlette.routing.Mount("/zart", app=api)])
    return starlette.applications.Starlette(
        routes=[starlette.routing.Mount("/a", app=inner)], lifespan=lifespan
    )


def in_litestar(api, lifespan=None):
    mounted = asgi("/zart", is_mount=True, copy_scope=True)(as_function(api))
    return litestar.Litestar([mounted], lifespan=[] if lifespan is None else [lifespan], openapi_config=None)


def as_function(api):
    async def mounted(
        scope: litestar.types.Scope, receive: litestar.types.Receive, send: litestar.types.Send
    ) -> None:
        await api(scope, receive, send)

    return mounted


HOSTS = [
    pytest.param(in_fastapi, "/zart", id="FastAPI"),
    pytest.param(in_starlette, "/zart", id="Starlette"),
    pytest.param(in_nested_starlette, "/a/zart", id="Starlette in Starlette"),
    pytest.param(in_litestar, "/zart", id="Litestar"),
]


@pytest.mark.parametrize(("host", "root"), HOSTS)
async def test_it_works_under_a_prefix_of_the_hosts(dsn, host, root):
    """Every sort of request, with ids of any signs; links and places hold the prefix. The first request opens the
    client, since a host does not pass its lifespan on."""
    api = create_app(dsn)
    async with calling(host(api)) as http:
        assert (await http.get(f"{root}/healthz")).json() == {"status": "ok"}
        for id, encoded in (
            ("a/b c", "a%2Fb%20c"),
            ("%2F", "%252F"),
            ("x//y/", "x%2F%2Fy%2F"),
            ("ä?#", "%C3%A4%3F%23"),
        ):
            started = await http.post(f"{root}/api/v1/executions", json={"name": "f", "id": id})
            assert started.status_code == 201
            assert started.headers["location"] == f"{root}/api/v1/executions/{encoded}"
            assert (await http.get(started.headers["location"])).json()["id"] == id
            assert (await http.post(f"{root}/api/v1/events/{encoded}/{encoded}", json=1)).status_code == 202
        page = (await http.get(f"{root}/api/v1/executions?limit=3")).json()
        assert page["next"].startswith(f"{root}/api/v1/executions?")
        assert len((await http.get(page["next"])).json()["executions"]) == 1
        assert (await http.get(f"{root}/api/v1/openapi.json")).json()["servers"] == [{"url": root}]
        refused = await http.get(f"{root}/api/v1/executions/nobody")
        assert refused.json()["instance"] == f"{root}/api/v1/executions/nobody"
        assert (await http.get(f"{root}/nothing")).headers["content-type"] == "application/problem+json"
    await api.aclose()


@pytest.mark.parametrize(("host", "root"), HOSTS)
async def test_without_tokens_it_refuses_the_public_wherever_it_is_mounted(dsn, host, root):
    """A host that listens on all interfaces does not open it to them."""
    api = create_app(dsn)
    for base, peer in (
        ("http://app.example.com", "8.8.8.8"),
        ("http://localhost", "8.8.8.8"),
        ("http://app.example.com", "127.0.0.1"),
    ):
        async with calling(host(api), base=base, peer=peer) as http:
            refused = await http.get(f"{root}/api/v1/executions")
            assert (refused.status_code, refused.json()["type"]) == (403, "urn:zart:problem:not-local")


@pytest.mark.parametrize(("host", "root"), HOSTS)
async def test_with_tokens_it_answers_those_who_have_one(dsn, tmp_path, host, root):
    """And nobody else."""
    api = create_app(dsn, token_file=token_file(tmp_path))
    async with calling(host(api), base="https://app.example.com", peer="8.8.8.8") as http:
        assert (await http.get(f"{root}/api/v1/executions")).status_code == 401
        assert (await http.get(f"{root}/api/v1/executions", headers=bearer("reader"))).status_code == 200
    await api.aclose()


@pytest.mark.parametrize(("host", "root"), HOSTS)
async def test_the_hosts_lifespan_can_open_and_close_it(dsn, host, root):
    """`async with api:` in it."""
    api = create_app(dsn)

    @asynccontextmanager
    async def lifespan(_app):
        async with api:
            yield

    app = host(api, lifespan)
    async with running(app):
        client = await api._service.client()
        assert client.is_open
        async with calling(app) as http:
            assert (await http.get(f"{root}/api/v1/stats")).status_code == 200
    assert not client.is_open


@asynccontextmanager
async def running(app):
    """The lifespan of an application, as a server runs it."""
    told, heard = asyncio.Queue(), asyncio.Queue()
    task = asyncio.create_task(
        app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, told.get, heard.put)
    )
    await told.put({"type": "lifespan.startup"})
    begun = await heard.get()
    assert begun["type"] == "lifespan.startup.complete", begun
    yield
    await told.put({"type": "lifespan.shutdown"})
    assert (await heard.get())["type"] == "lifespan.shutdown.complete"
    await task


async def test_its_own_lifespan_opens_and_closes_a_client_of_its_own(dsn):
    """Under a server, before the first request and after the last."""
    app = create_app(dsn)
    async with running(app):
        client = app._service._client
        assert client.is_open
    assert not client.is_open


async def test_a_lifespan_that_fails_says_why(tmp_path):
    """The server hears of it, and does not begin."""
    app = create_app(f"postgresql://nobody@/x?host={tmp_path}")
    sent = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    await app({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "Check that the server runs" in sent[0]["message"]


async def test_a_client_that_is_open_stays_its_owners(dsn):
    """With its schema and its author."""
    async with Client(dsn, author="the application") as client:
        app = create_app(client)
        async with app, calling(app) as http:
            await http.post("/api/v1/executions", json={"name": "f", "id": "a"})
            await http.post("/api/v1/executions/a/cancel")
        await app.aclose()
        assert client.is_open
        notes = (await client.history("a")).notes
    assert notes[0].endswith("cancelled by the application")


async def test_a_client_that_is_not_open_is_opened_and_closed(dsn):
    """By the first request, and by `aclose`; then it may be opened again."""
    client = Client(dsn)
    app = create_app(client)
    async with calling(app) as http:
        for _ in range(2):
            assert not client.is_open
            answers = await asyncio.gather(*(http.get("/api/v1/stats") for _ in range(10)))
            assert {answer.status_code for answer in answers} == {200}
            assert client.is_open
            await app.aclose()


async def test_the_environment_names_the_database(dsn, monkeypatch):
    """`create_app(None)`."""
    monkeypatch.setenv("ZART_DATABASE_URL", dsn)
    async with create_app(None) as app, calling(app) as http:
        assert (await http.get("/readyz")).status_code == 200


def test_one_application_belongs_to_one_event_loop(dsn, caplog):
    """In another one it says so in the log, instead of hanging."""
    app = create_app(dsn)

    async def ask():
        async with calling(app) as http:
            return await http.get("/api/v1/stats")

    with asyncio.Runner() as first:
        assert first.run(ask()).status_code == 200
        with asyncio.Runner() as second:
            refused = second.run(ask())
        assert refused.status_code == 500
        assert "another event loop" in caplog.text
        first.run(app.aclose())


async def test_a_client_acts_in_anothers_name(dsn):
    """`as_author` is the same client, open as long as that is, under another name."""
    client = Client(dsn, author="ann")
    with pytest.raises(UsageError, match="not open"):
        client.as_author("bob")
    async with client:
        bob = client.as_author("bob")
        for id, by in (("a", client), ("b", bob)):
            await client.start("f", id=id)
            await by.cancel(id)
        with pytest.raises(UsageError, match="open already"):
            await bob.__aenter__()
        told = [(await client.history(id)).notes[0].rpartition(" by ")[2] for id in ("a", "b")]
    assert told == ["ann", "bob"]


def test_nobody_imports_litestar_unasked():
    """Neither `import zart`, nor `import zart.http`, nor the command line."""
    program = (
        "import sys, zart, zart.http, zart_cli.main;"
        "print(sorted({'litestar', 'uvicorn', 'h11'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    """By the distribution's name."""
    monkeypatch.setitem(sys.modules, "litestar", None)
    with pytest.raises(UsageError, match=r"pip install 'zart-durable\[http\]'"):
        create_app("postgresql://localhost/x")
