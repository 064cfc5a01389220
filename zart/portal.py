"""A Client for threads: it lives on an event loop of its own, in a thread of its own.

The loop begins with the first call, or with `open`, and any number of threads may call at once: each waits for its
own answer only. It ends with `close`, or when nobody has the portal any more, or with the process.

After a fork the child has the parent's sockets, but not its threads. Statements of both on one connection would get
each other's answers, so the child is refused, and sends nothing over what it has inherited.
"""

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial
from typing import Any, Generic, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from zart.client import Client
from zart.client.outside import refuse_in_body
from zart.errors import UsageError
from zart.loops import loop_factory
from zart.telemetry.hub import hub

T = TypeVar("T")


class Portal:
    """Calls methods of one client, which belongs to nobody else."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._process: int | None = None
        """Whose threads may use it: the process that was the first to open it."""
        self._portal: BlockingPortal | None = None
        self._end: Callable[[], object] = _nothing
        self._entered = False
        self._closed = False

    def call(
        self, called: str, method: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any
    ) -> T:
        """What a method of the client gives. `called` is its name for people.

        Raises what it raises; UsageError in a durable body, on a running event loop, in a fork of the process that
        opened it, and after `close`.
        """
        refuse_in_body(f"zart.sync.{called}")
        owner, _, name = called.rpartition(".")
        refuse_on_loop(
            f"zart.sync.{called}", f"await {'handle' if owner == 'ExecutionHandle' else 'client'}.{name}(...)"
        )
        call: _Call[T] = _Call(partial(method, *args, **kwargs))
        try:
            return self._begin_call(call.run).result()
        except BaseException:
            call.abandon()  # Ctrl-C, or a server that gives a request up: the call ends with whoever waited for it
            raise

    def open(self) -> None:
        """Begin, if no call has done so; also again after `close`. Raises UsageError when it is entered already."""
        with self._locked():
            if self._entered:
                raise UsageError(
                    "this zart.sync.Client is open already: one `with` is enough, threads may share it"
                )
            self._closed = False
            self._portal = self._portal or self._begin()
            self._entered = True

    def close(self) -> None:
        """End; whoever still waits for an answer gets an error. Harmless when it never began, and in a fork."""
        if self._is_inherited():
            return
        with self._lock:
            self._entered, self._closed, self._portal = False, True, None
            self._process = None  # nothing is open that a fork could share
            end, self._end = self._end, _nothing
        end()

    def _begin_call(self, call: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        with self._locked():  # so that the loop cannot end between the look and the call
            if self._closed:
                raise UsageError("this zart.sync.Client is closed: make another one, or enter it again")
            if self._portal is None:
                self._portal = self._begin()
            return self._portal.start_task_soon(call)

    def _locked(self) -> AbstractContextManager[object]:
        if self._is_inherited():
            raise UsageError(
                f"this zart.sync.Client was opened in process {self._process}, and this is a fork of it, process "
                f"{os.getpid()}: the two cannot share connections. Make a Client of its own in each process, or let "
                "the first call come after the fork"
            )
        # Before the lock: a fork may find that held by a thread that it does not have.
        self._process = os.getpid()
        return self._lock

    def _is_inherited(self) -> bool:
        return self._process not in (None, os.getpid())

    def _begin(self) -> BlockingPortal:
        started: Future[BlockingPortal] = Future()
        thread = threading.Thread(
            target=_run, args=(self._client, started), name="zart sync client", daemon=True
        )
        thread.start()
        try:
            portal = started.result()
        except BaseException:
            started.cancel()  # Ctrl-C: it ends as soon as it would have begun
            self._process = None
            raise
        self._end = weakref.finalize(self, _end, portal, thread, os.getpid())
        return portal


class _Call(Generic[T]):
    """One call: it ends with whoever waits for it, even one who is interrupted before he holds its answer."""

    def __init__(self, method: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._method = method
        self._context = copy_context() if hub.tracing is not None else None
        """What the caller's thread is in, for those who trace it."""
        self._task: asyncio.Task[Any] | None = None
        self._abandoned = False

    async def run(self) -> T:
        """In the loop's thread."""
        self._task = asyncio.current_task()
        if self._abandoned:
            raise asyncio.CancelledError
        if self._context is None:
            return await self._method()
        return await asyncio.get_running_loop().create_task(self._method(), context=self._context)

    def abandon(self) -> None:
        """In the caller's thread."""
        self._abandoned = True  # before it looks: `run` does the two in the other order
        task = self._task
        if task is not None and not task.done():
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the call with it
                task.get_loop().call_soon_threadsafe(task.cancel)


def _run(client: Client, started: "Future[BlockingPortal]") -> None:
    """What the thread does."""
    try:
        anyio.run(_serve, client, started, backend_options={"loop_factory": loop_factory()})
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)  # goes to whoever opens it


async def _serve(client: Client, started: "Future[BlockingPortal]") -> None:
    # The client ends before the portal, which waits for all calls: those who wait for a result get an error.
    async with client, BlockingPortal() as portal:
        if not started.cancelled():
            started.set_result(portal)
            await portal.sleep_until_stopped()
            await client.__aexit__(None, None, None)


def _end(portal: BlockingPortal, thread: threading.Thread, process: int) -> None:
    """End the client, the loop and the thread. It runs once, wherever the portal is dropped."""
    if os.getpid() != process:
        return  # a fork: the thread is in the other process, and so is everything that has to be closed
    if threading.current_thread() is thread:
        # The collector of garbage came by in the loop's own thread, which cannot wait for itself.
        threading.Thread(target=_stop, args=(portal, thread), name="zart sync client end").start()
    else:
        _stop(portal, thread)


def _stop(portal: BlockingPortal, thread: threading.Thread) -> None:
    if thread.is_alive():
        portal.call(portal.stop)
    thread.join()


def refuse_on_loop(called: str, instead: str) -> None:
    """Raise UsageError where an event loop runs in this thread: it would stand still until the answer comes."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise UsageError(
        f"{called} would block the event loop that runs in this thread: use the async client here, "
        f"`async with zart.Client(...) as client:` and `{instead}`"
    )


def _nothing() -> None:
    pass
