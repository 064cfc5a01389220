"""The watchdog: a loop that is blocked is seen from another thread, with the line that blocks it."""

import asyncio
import logging
import threading
import time

import pytest

from zart._engine.watchdog import Watchdog, all_stacks, blocking_place


class Watched:
    """A loop in a thread of its own, which a test can block for as long as it wants."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="watched loop")
        self.thread.start()
        self.blocked = threading.Event()
        self.go_on = threading.Event()

    def block(self) -> None:
        self.loop.call_soon_threadsafe(self._callback)
        assert self.blocked.wait(5)

    def _callback(self) -> None:
        self.blocked.set()
        self.go_on.wait(20)  # the line that blocks

    def release(self) -> None:
        self.go_on.set()
        answered = threading.Event()
        self.loop.call_soon_threadsafe(answered.set)
        assert answered.wait(5)

    def watchdog(self, **seconds: float) -> Watchdog:
        assert self.thread.ident is not None
        return Watchdog(self.loop, self.thread.ident, **seconds)

    def close(self) -> None:
        self.go_on.set()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def watched():
    made = Watched()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.INFO, "zart.worker")


def look_until(watchdog: Watchdog, condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        watchdog.look()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_loop_that_turns_is_not_mentioned(watched, caplog):
    """However often one looks."""
    watchdog = watched.watchdog(patience=1.0, wedge=60)
    for _ in range(100):
        watchdog.look()
    assert caplog.text == ""
    assert not watchdog.wedged


def test_the_blocking_line_is_named(watched, caplog):
    """The user's innermost frame, and what it called; after the release, how long it took."""
    watchdog = watched.watchdog(patience=0.05, wedge=60)
    watchdog.look()
    watched.block()
    watchdog.look()
    look_until(watchdog, lambda: caplog.records)
    assert f"{__file__}:" in caplog.text
    assert "_callback, which called" in caplog.text
    assert "in wait" in caplog.text
    watched.release()
    caplog.clear()
    look_until(watchdog, lambda: caplog.records)
    assert "runs again" in caplog.text


def test_a_long_block_is_repeated_at_growing_intervals(watched, caplog):
    """Twice as long each time: a block of 40 times the patience is a handful of lines, not 40."""
    watchdog = watched.watchdog(patience=0.02, wedge=60)
    watchdog.look()
    watched.block()
    watchdog.look()
    start = time.monotonic()
    look_until(watchdog, lambda: time.monotonic() - start > 0.8)
    assert 3 <= len(caplog.records) <= 7


def test_past_the_wedge_limit_the_loop_is_given_up_once(watched, caplog):
    """All stacks are logged, and it stays given up even if the loop comes back."""
    watchdog = watched.watchdog(patience=10.0, wedge=0.05)
    watchdog.look()
    watched.block()
    watchdog.look()
    look_until(watchdog, lambda: watchdog.wedged)
    watchdog.look()
    (record,) = caplog.records
    assert record.levelno == logging.CRITICAL
    assert "Thread watched loop:" in record.getMessage()
    assert "the line that blocks" in record.getMessage()
    watched.release()
    watchdog.look()
    assert watchdog.wedged


def test_a_closed_loop_is_not_watched(caplog):
    """Nothing is left that could be blocked."""
    loop = asyncio.new_event_loop()
    loop.close()
    watchdog = Watchdog(loop, threading.get_ident(), patience=0.0, wedge=0.01)
    for _ in range(3):
        watchdog.look()
    assert not watchdog.wedged
    assert caplog.text == ""


def test_a_place_without_a_users_frame_is_still_a_place(watched):
    """An idle loop stands in the standard library."""
    assert watched.thread.ident is not None
    assert blocking_place(watched.thread.ident).startswith("at ")
    assert blocking_place(-1) == "and its thread has ended"
    assert "watched loop" in all_stacks()
