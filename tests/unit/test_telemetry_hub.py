"""Hooks: who is called, and what becomes of those that fail or are slow."""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.listening import listening
from zart import UsageError, telemetry
from zart.telemetry import threaded as threads
from zart.telemetry.events import WorkerFenced, WorkerStopped
from zart.telemetry.hub import Hub, Trouble

EVENT = WorkerFenced(worker=1)
OTHER = WorkerStopped(worker=1)


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture(autouse=True)
def _levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "zart.telemetry")


def test_nobody_listens_until_somebody_subscribes(hub: Hub) -> None:
    """The engine asks one attribute before it makes an event."""
    assert hub.listening is False
    first, second = hub.subscribe(lambda _: None), hub.subscribe(lambda _: None)
    assert hub.listening is True
    first.close()
    assert hub.listening is True
    second.close()
    assert hub.listening is False
    second.close()  # harmless


def test_each_hook_hears_each_event_while_it_is_subscribed(hub: Hub) -> None:
    """In the order of their subscriptions; a `with` block ends one."""
    heard: list[tuple[str, object]] = []
    with hub.subscribe(lambda event: heard.append(("a", event))):
        with hub.subscribe(lambda event: heard.append(("b", event))):
            hub.tell(EVENT)
        hub.tell(OTHER)
    hub.tell(EVENT)
    assert heard == [("a", EVENT), ("b", EVENT), ("a", OTHER)]


@pytest.mark.parametrize(
    "error", [ValueError("no"), asyncio.CancelledError(), SystemExit(3), GeneratorExit()], ids=repr
)
def test_what_a_hook_raises_goes_no_further(
    hub: Hub, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is: the others hear the event all the same, and it is counted."""

    def fails(_event: object) -> None:
        raise error

    heard: list[object] = []
    hub.subscribe(fails)
    hub.subscribe(heard.append)
    hub.tell(EVENT)
    assert heard == [EVENT]
    ((trouble, count),) = hub.troubles.items()
    assert (trouble.event, trouble.kind, count) == ("WorkerFenced", "raised", 1)
    assert "test_telemetry_hub" in trouble.hook
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_ctrl_c_in_a_hook_is_ctrl_c(hub: Hub) -> None:
    """It is not the hook's error: somebody wants the process to end."""

    def interrupted(_event: object) -> None:
        raise KeyboardInterrupt

    hub.subscribe(interrupted)
    with pytest.raises(KeyboardInterrupt):
        hub.tell(EVENT)


def test_the_same_trouble_is_said_once_and_counted_each_time(
    hub: Hub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each hook and kind of event, and another one a minute later, with the count."""

    def fails(_event: object) -> None:
        raise ValueError

    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    hub.subscribe(fails)
    for _ in range(50):
        hub.tell(EVENT)
    hub.tell(OTHER)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert sorted(hub.troubles.values()) == [1, 50]
    now += 61
    hub.tell(EVENT)
    hub.tell(EVENT)
    assert len(caplog.records) == 3
    assert "51 times" in caplog.records[-1].getMessage()


def test_a_slow_hook_is_said_to_be_slow(
    hub: Hub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, with what to do about it; not the first time, when it may be the machine that had no time."""
    clock = itertools.count(0, 0.3)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))

    def dawdles(_event: object) -> None:
        pass

    hub.subscribe(dawdles)
    hub.tell(EVENT)
    hub.tell(EVENT)
    assert caplog.records == []
    hub.tell(EVENT)
    (record,) = caplog.records
    assert "dawdles took 0.30 s for WorkerFenced (3 times so far)" in record.getMessage()
    assert "threaded=True" in record.getMessage()
    assert {trouble.kind: count for trouble, count in hub.troubles.items()} == {"slow": 3}


def test_a_threaded_hook_holds_nobody_up(hub: Hub) -> None:
    """It hears everything in order, in a thread of its own, while whoever tells has gone on."""
    gate, heard = threading.Event(), list[tuple[object, str]]()

    def waits(event: object) -> None:
        assert gate.wait(10)
        heard.append((event, threading.current_thread().name))

    subscription = hub.subscribe(waits, threaded=True)
    hub.tell(EVENT)
    hub.tell(OTHER)
    assert heard == []
    gate.set()
    subscription.close()  # gives it what waits
    assert [event for event, _ in heard] == [EVENT, OTHER]
    assert {name for _, name in heard} == {f"zart telemetry {subscription.name}"}
    assert hub.troubles == {}


def test_what_a_threaded_hook_has_no_time_for_is_dropped(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted, and said once; memory is bounded."""
    monkeypatch.setattr(threads, "MOST_WAITING", 2)
    gate, busy = threading.Event(), threading.Event()

    def hangs(_event: object) -> None:
        busy.set()
        assert gate.wait(10)

    subscription = hub.subscribe(hangs, threaded=True)
    hub.tell(EVENT)
    assert busy.wait(10)
    for _ in range(5):
        hub.tell(EVENT)
    assert hub.troubles == {Trouble(subscription.name, "WorkerFenced", "dropped"): 3}
    assert len(caplog.records) == 1
    gate.set()
    subscription.close()


def test_a_threaded_hook_may_fail_too(hub: Hub) -> None:
    """The thread goes on with the next event."""
    heard: list[object] = []

    def fails(event: object) -> None:
        heard.append(event)
        raise ValueError

    with hub.subscribe(fails, threaded=True):
        hub.tell(EVENT)
        hub.tell(OTHER)
    assert heard == [EVENT, OTHER]
    assert sum(hub.troubles.values()) == 2


async def _coroutine(_event: object) -> None: ...


class _CallsCoroutine:
    async def __call__(self, _event: object) -> None: ...


@pytest.mark.parametrize("hook", [_coroutine, _CallsCoroutine(), 7])
def test_what_cannot_be_a_hook_is_refused(hub: Hub, hook: object) -> None:
    """At once, not at the first event."""
    with pytest.raises(UsageError, match="hook"):
        hub.subscribe(hook)  # type: ignore[arg-type]
    assert hub.listening is False


class _Broken:
    def enter(self, _segment: object) -> None:
        raise ValueError

    def current(self) -> str:
        raise asyncio.CancelledError

    def of_segment(self, _segment: object) -> str:
        raise ValueError

    def ids(self) -> tuple[str, str]:
        raise ValueError


def test_tracing_that_fails_has_no_answer(hub: Hub) -> None:
    """What the engine asks of it is asked as carefully as hooks are called."""
    hub.tracing = _Broken()
    segment: object = None
    assert hub.trace_context() is None
    assert hub.trace_context_of(segment) is None  # type: ignore[arg-type]
    assert hub.trace_ids() is None
    hub.enter(segment)  # type: ignore[arg-type]
    assert sum(hub.troubles.values()) == 4


@pytest.fixture
def _nobody() -> Iterator[None]:
    yield
    assert not telemetry.hub.hub.listening


@pytest.mark.usefixtures("_nobody")
def test_subscribing_is_of_the_process() -> None:
    """`zart.telemetry.subscribe` is what a program calls."""
    from zart.telemetry.hub import hub as shared

    with listening() as heard:
        shared.tell(EVENT)
    assert heard.events == [EVENT]


def test_an_exception_does_not_show_its_text() -> None:
    """Whoever prints events prints no message that may quote what a function was given."""
    raised = telemetry.Raised(type="ValueError", message="card 4556")
    assert "4556" not in repr(raised)
    assert "ValueError" in repr(raised)
