"""A Client for threads: it lives on an event loop of its own, in a thread of its own.

The loop begins with the first call, or with `open`, and any number of threads may call at once: each waits for its
own answer only. It ends with `close`, or when nobody has the portal any more, or with the process.

After a fork the child has the parent's sockets, but not its threads. Statements of both on one connection would get
each other's answers, so the child is refused, and sends nothing over what it has inherited.
"""

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from zart.client import Client
from zart.client.outside import refuse_in_body
from zart.errors import UsageError
from zart.loops import loop_factory

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
        answer: Future[T] = self._opened().start_task_soon(partial(method, *args, **kwargs))
        try:
            return answer.result()
        except BaseException:
            answer.cancel()  # Ctrl-C, or a server that gives a request up: the call ends with whoever waited for it
            raise

    def open(self) -> None:
        """Begin, if no call has done so; also again after `close`. Raises UsageError when it is entered already."""
        if self._entered:
            raise UsageError(
                "this zart.sync.Client is open already: one `with` is enough, threads may share it"
            )
        self._closed = False
        self._opened()
        self._entered = True

    def close(self) -> None:
        """End; whoever still waits for an answer gets an error. Harmless when it never began."""
        self._entered, self._closed, self._portal = False, True, None
        end, self._end = self._end, _nothing
        end()

    def _opened(self) -> BlockingPortal:
        here = os.getpid()
        if self._process not in (None, here):
            raise UsageError(
                f"this zart.sync.Client was opened in process {self._process}, and this is a fork of it, process "
                f"{here}: the two cannot share connections. Make a Client of its own in each process, or let the "
                "first call come after the fork"
            )
        self._process = here  # before the lock: a fork may find that held by a thread that it does not have
        with self._lock:
            if self._closed:
                raise UsageError("this zart.sync.Client is closed: make another one, or enter it again")
            if self._portal is None:
                self._portal = self._begin()
            return self._portal

    def _begin(self) -> BlockingPortal:
        try:
            with ExitStack() as stack:
                portal = stack.enter_context(
                    start_blocking_portal("asyncio", {"loop_factory": loop_factory()})
                )
                portal.call(self._client.__aenter__)
                stack.callback(portal.call, self._client.__aexit__, None, None, None)
                thread = portal.call(threading.get_ident)
                self._end = weakref.finalize(self, _end, stack.pop_all(), portal, os.getpid(), thread)
                return portal
        except BaseException:
            self._process = None  # nothing is open that a fork could share
            raise


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


def _end(stack: ExitStack, portal: BlockingPortal, process: int, thread: int) -> None:
    """End the client, the loop and the thread. It runs once, wherever the portal is dropped."""
    if os.getpid() != process:
        # Nobody is there to end it. Have it know that it has stopped, so that it does not wait for the thread.
        portal.stop().send(None)
    elif threading.get_ident() == thread:
        # The collector of garbage came by in the loop's own thread, which cannot wait for itself.
        threading.Thread(target=stack.close, name="zart client close").start()
    else:
        stack.close()
