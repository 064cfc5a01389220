"""The client for threads: what it does is what the async one does; how it begins, ends, forks and is refused."""

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import zart
import zart.sync
from tests.support.clients import Approval, Approved, Order, fail, rows, ship
from tests.support.running import until, working
from zart import durable, step
from zart.portal import Portal

CONNECTED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'zart%'"


@step("approve")
async def approve(number: int, by: str) -> str:
    return f"{number} approved by {by}"


sees_sessions = pytest.mark.not_in("pgbouncer", reason="the pooler keeps sessions that a client has closed")


@durable("sign")
async def sign(order: Order) -> str:
    return await approve(order.number, (await zart.wait_for_event(Approved)).by)


@durable("refuse")
async def refuse() -> None:
    raise ValueError("no")


# ------------------------------------------------------------ what it does


async def test_everything_that_a_client_does(dsn: str) -> None:
    """Start, look, offer, wait, cancel: each as the async client does it, from a thread without a loop."""

    def work() -> None:
        with zart.sync.Client(dsn) as client:
            handle = client.start(sign, Order(1), id="a")
            assert (handle.id, handle.created) == ("a", True)
            assert not client.start(sign, Order(1), id="a").created
            assert client.start(sign, Order(2), id="a", on_conflict="return").id == "a"
            with pytest.raises(zart.ExecutionConflict):
                client.start(sign, Order(2), id="a")
            with pytest.raises(zart.ResultTimeout):
                handle.result(timeout="10ms")
            assert handle.status().id == client.status("a").id == "a"
            assert client.offer_event("a", Approved, Approval("ann"), dedup="k")
            assert not client.offer_event("a", Approved, Approval("ann"), dedup="k")
            assert handle.result(timeout="30s") == "1 approved by ann"
            assert client.handle(sign, "a").result() == "1 approved by ann"
            assert client.wait_completion("a") == "1 approved by ann"
            with pytest.raises(zart.PayloadError):
                client.wait_completion("a", type=int)
            with pytest.raises(zart.ExecutionFinished):
                client.offer_event("a", "approved", {"by": "bob"})

            later = client.start(sign, Order(3), delay="1h", queue="slow", priority=2)
            assert (later.status().queue, later.status().priority) == ("slow", 2)
            assert client.cancel(later.id, reason="not needed")
            assert not client.cancel(later.id)
            with pytest.raises(zart.ExecutionCancelled, match="not needed"):
                later.result()
            with pytest.raises(zart.ExecutionFailed, match="no"):
                client.start_and_wait(refuse, timeout="30s")
            with pytest.raises(zart.ExecutionNotFound):
                client.status("nobody")
            assert repr(handle) == "<execution 'a'>"

    async with working(dsn, sign, refuse):
        await asyncio.to_thread(work)


def test_a_blocked_execution_is_resumed(dsn: str) -> None:
    """`result` raises when it is blocked; `resume` lets it go on."""
    with zart.sync.Client(dsn) as client:
        handle = client.start(ship, Order(1))
        fail(dsn, handle.id, zart.NonDeterminismError("changed"), "blocked")
        with pytest.raises(zart.ExecutionBlocked):
            handle.result()
        assert client.resume(handle.id, reason="mended", accept_arguments=True)
        assert not client.resume(handle.id)


async def test_from_many_threads(dsn: str) -> None:
    """Threads share one client; each gets its own answers."""

    def work(number: int) -> str:
        handle = client.start(sign, Order(number))
        client.offer_event(handle.id, Approved, Approval(f"thread {number}"))
        return handle.result(timeout="30s")

    async with working(dsn, sign):
        client = zart.sync.Client(dsn)
        with ThreadPoolExecutor(32) as threads:
            told = await asyncio.to_thread(lambda: list(threads.map(work, range(200))))
        assert told == [f"{number} approved by thread {number}" for number in range(200)]
        loops = [thread for thread in threading.enumerate() if thread.name == "zart sync client"]
        assert len(loops) == 1
        await asyncio.to_thread(client._portal.close)


def test_the_tables_are_made(empty_dsn: str) -> None:
    """`migrate` makes them, in any schema, and again without harm."""
    zart.sync.migrate(empty_dsn)
    zart.sync.migrate(empty_dsn, schema="jobs")
    zart.sync.migrate(empty_dsn, schema="jobs")
    with zart.sync.Client(empty_dsn, schema="jobs") as client:
        client.start(ship, Order(1), id="a")
    assert rows(empty_dsn, "SELECT id FROM jobs.zart_executions") == [("a",)]
    assert rows(empty_dsn, "SELECT id FROM zart_executions") == []


def test_it_runs_on_uvloop_where_that_is_installed(dsn: str) -> None:
    """As `zart worker` does."""
    uvloop = pytest.importorskip("uvloop")
    with zart.sync.Client(dsn) as client:
        loop = client._portal.call("test", _running_loop)
    assert isinstance(loop, uvloop.Loop)


async def _running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


# ------------------------------------------------------------ how it begins and ends


def test_nothing_is_open_before_the_first_call(dsn: str) -> None:
    """To make one costs nothing and asks for no database; the first call opens it."""
    before = threading.active_count()
    client = zart.sync.Client(dsn)
    handle = client.handle(ship, "a")
    assert threading.active_count() == before
    assert client.start(ship, Order(1), id="a").created
    assert handle.status().status == "scheduled"
    client._portal.close()
    assert threading.active_count() == before


@sees_sessions
def test_with_closes_it(dsn: str) -> None:
    """After `with` its connections and its thread are gone, a call is refused, and it may be entered again."""
    before = threading.active_count()
    client = zart.sync.Client(dsn)
    for _ in range(2):
        with client:
            assert client.start(ship, Order(1), id="a")
            with pytest.raises(zart.UsageError, match="open already"), client:
                pass
            assert rows(dsn, CONNECTED) != [(0,)]
        assert threading.active_count() == before
        _until_disconnected(dsn)
        with pytest.raises(zart.UsageError, match="is closed"):
            client.status("a")


@sees_sessions
def test_dropped_it_is_closed(dsn: str) -> None:
    """A client that nobody has any more leaves no thread and no connection; a handle keeps it."""
    before = threading.active_count()
    handle = zart.sync.Client(dsn).start(ship, Order(1), id="a")
    gc.collect()
    assert handle.status().status == "scheduled"
    del handle
    gc.collect()
    assert threading.active_count() == before
    _until_disconnected(dsn)


@sees_sessions
def test_dropped_in_its_own_thread_it_is_closed(dsn: str) -> None:
    """The collector may find it in the thread of its own loop, which must not wait for itself."""
    before = threading.active_count()
    client = zart.sync.Client(dsn)
    client.start(ship, Order(1), id="a")
    portal = client._portal._portal
    held = [client]
    del client
    assert portal is not None
    portal.call(held.clear)
    _until(lambda: threading.active_count() == before)
    _until_disconnected(dsn)


def test_an_unreachable_database_can_be_tried_again(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose first call fails has left nothing behind, and opens with a later one."""
    monkeypatch.delenv("ZART_DATABASE_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    before = threading.active_count()
    client = zart.sync.Client()
    with pytest.raises(zart.UsageError, match="ZART_DATABASE_URL"):
        client.status("a")
    assert threading.active_count() == before
    monkeypatch.setenv("ZART_DATABASE_URL", dsn)
    with client, pytest.raises(zart.ExecutionNotFound):
        client.status("a")


def test_closed_while_others_wait(dsn: str) -> None:
    """Who waits for a result when the client is closed gets an error, and is not left waiting."""
    client = zart.sync.Client(dsn)
    with ThreadPoolExecutor(4) as threads:
        with client:
            handle = client.start(ship, Order(1))
            waiting = [threads.submit(handle.result) for _ in range(4)]
            _until(lambda: rows(dsn, "SELECT awaited FROM zart_executions") == [(True,)])
        for one in waiting:
            with pytest.raises(zart.ZartError, match="closed"):
                one.result(10)


def test_at_the_end_of_the_process(dsn: str) -> None:
    """A client that nobody has closed is closed when the process ends; a daemon thread that waits gets an error."""
    assert _run(
        dsn,
        """
        client = zart.sync.Client()
        handle = client.start(ship, Order(1), id="a")
        print(client.status("a").status)

        def wait():
            try:
                handle.result()
            except zart.ZartError as error:
                print(error)

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        until(lambda: rows(dsn, "SELECT awaited FROM zart_executions") == [(True,)])
        """,
        at_the_very_end="waiting.join(); print([thread.name for thread in threading.enumerate()])",
    ).splitlines() == [
        "scheduled",
        "the Client was closed while this waited for an execution to end",
        "['MainThread']",
    ]


def test_ctrl_c_ends_the_wait(dsn: str) -> None:
    """A signal that raises in the waiting thread ends the call; the client is as good as before."""
    assert _run(
        dsn,
        """
        import os, signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
        with zart.sync.Client() as client:
            handle = client.start(ship, Order(1), id="a")

            def interrupt():
                until(lambda: rows(dsn, "SELECT awaited FROM zart_executions") == [(True,)])
                os.kill(os.getpid(), signal.SIGINT)

            threading.Thread(target=interrupt).start()
            try:
                handle.result()
            except KeyboardInterrupt:
                print("interrupted")
            until(lambda: not client._client._outcomes_._waits)  # nobody waits any more, in the loop either
            print(client.status("a").status)
        """,
    ).splitlines() == ["interrupted", "scheduled"]


def test_an_interrupt_before_the_answer_is_at_hand(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call has begun and its caller was interrupted before it could wait: it ends all the same."""
    with zart.sync.Client(dsn) as client:
        handle = client.start(ship, Order(1), id="a")
        begin = Portal._begin_call

        def interrupted(portal: Portal, call: Any) -> Any:
            begin(portal, call)
            while not client._client._outcomes_._waits:
                pass
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Portal, "_begin_call", interrupted)
            with pytest.raises(KeyboardInterrupt):
                handle.result()
        deadline = time.monotonic() + 15
        while client._client._outcomes_._waits:
            assert time.monotonic() < deadline, "the call goes on without anybody who waits for it"
        assert handle.status().status == "scheduled"


# ------------------------------------------------------------ forks


def test_a_fork_is_refused_and_does_no_harm(dsn: str) -> None:
    """The child of a process with an open client is told so, ends as usual, and the parent goes on with its own."""
    assert _run(
        dsn,
        """
        import os, psycopg
        client = zart.sync.Client()
        print(client.start(ship, Order(1), id="a").created)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            for call in (lambda: client.status("a"), client.__enter__):
                try:
                    call()
                except zart.UsageError as error:
                    print("refused:", "is a fork of it" in str(error))
            with psycopg.connect(dsn) as connection:
                print(zart.sync.start(ship, Order(2), id="b", connection=connection))
            with zart.sync.Client() as own:
                print(own.status("b").status)
            sys.exit(7)
        print("child:", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        for _ in range(20):
            assert client.status("a").status == "scheduled"
        print(client.start(ship, Order(3), id="c").created)
        """,
        "-W", "ignore::DeprecationWarning",  # that threads and fork do not go together, from Python 3.12
    ).splitlines() == ["True", "refused: True", "refused: True", "b", "scheduled", "child: 7", "True"]  # fmt: skip


def test_a_fork_while_it_is_not_open_is_fine(dsn: str) -> None:
    """What a server makes before it forks, and opens only after that, belongs to each of its processes."""
    assert _run(
        dsn,
        """
        import os
        client = zart.sync.Client()

        def in_a_child(number):
            child = os.fork()
            if child == 0:
                with client:
                    print(client.start(ship, Order(number), id=str(number)).id)
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0

        in_a_child(1)
        in_a_child(2)
        with client:
            print(client.status("2").status)
        in_a_child(3)
        """,
    ).splitlines() == ["1", "2", "scheduled", "3"]


# ------------------------------------------------------------ where it is refused


async def test_on_an_event_loop_it_is_refused(dsn: str) -> None:
    """It would block the loop: the error names the async client and its method."""
    before = threading.active_count()
    client = zart.sync.Client(dsn)
    handle = client.handle(ship, "a")
    calls: dict[str, Callable[[], Any]] = {
        r"zart\.Client.*await client\.start\(": lambda: client.start(ship, Order(1)),
        r"zart\.Client.*await client\.status\(": lambda: client.status("a"),
        r"zart\.Client.*await handle\.result\(": handle.result,
        r"await zart\.migrate\(": lambda: zart.sync.migrate(dsn),
    }
    for message, call in calls.items():
        with pytest.raises(zart.UsageError, match=message):
            call()
    assert threading.active_count() == before


@durable("asks-around")
async def asks_around(dsn: str) -> list[str]:
    """Calls a client in its body, in a thread of its own, and in a step of each kind."""
    told: list[str] = []
    with pytest.raises(zart.UsageError) as caught:
        zart.sync.Client(dsn).status("a")
    told.append(str(caught.value))
    return [*told, await asks(dsn), await asks_on_the_loop(dsn)]


@step("asks")
def asks(dsn: str) -> str:
    with zart.sync.Client(dsn) as client:
        return client.status(zart.execution_id()).name


@step("asks-on-the-loop")
async def asks_on_the_loop(dsn: str) -> str:
    with pytest.raises(zart.UsageError) as caught:
        zart.sync.Client(dsn).status("a")
    return str(caught.value)


async def test_in_a_body_it_is_refused_and_in_a_step_it_works(dsn: str) -> None:
    """A body would ask again on every replay. A plain `def` step may ask; an async one has the async client."""
    async with working(dsn, asks_around) as client:
        in_body, in_step, on_loop = await client.start_and_wait(asks_around, dsn, timeout="30s")
    assert "Client.status is called in the body of execution" in in_body
    assert in_step == "asks-around"
    assert "await client.status(...)" in on_loop


# ------------------------------------------------------------ tools


def _run(dsn: str, program: str, *options: str, at_the_very_end: str = "") -> str:
    """What a program prints, that must end with 0 and complain of nothing."""
    lines = [
        "import atexit, sys, threading",
        f"atexit.register(lambda: exec({at_the_very_end!r}, globals()))",  # the first to come is the last to go
        "import zart, zart.sync",
        "from tests.support.clients import Order, rows, ship",
        "from tests.integration.test_sync_client import _until as until",
        f"dsn = {dsn!r}",
        textwrap.dedent(program),
    ]
    ran = subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", "\n".join(lines)],
        env={**os.environ, "ZART_DATABASE_URL": dsn},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def _until(condition: Callable[[], object]) -> None:
    asyncio.run(until(condition))


def _until_disconnected(dsn: str) -> None:
    _until(lambda: rows(dsn, CONNECTED) == [(0,)])
