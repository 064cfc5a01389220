"""Execution and step on each line of a log."""

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest

import zart
from zart import durable, step, telemetry, testing
from zart_cli.logs import log_to_stderr

log = logging.getLogger("shop")


class Kept(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.addFilter(telemetry.LogContext())

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def where(self) -> dict[str, tuple[object, ...]]:
        """By the text of a line: execution, function, step, attempt."""
        names = ("execution_id", "function", "step", "attempt")
        return {
            record.getMessage(): tuple(getattr(record, f"zart_{name}") for name in names)
            for record in self.records
        }


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)


@step("charge-{number}", retry="fixed(1, 1s)")
async def charge(number: int) -> int:
    log.info("charging, attempt %d", zart.step_context().step_attempt)
    if zart.step_context().step_attempt == 1:
        raise ConnectionError
    await asyncio.gather(_deeper())
    return number


async def _deeper() -> None:
    log.info("in a task of a step")


@step("print")
def print_label() -> None:
    log.info("in a thread")


@durable("parcel")
async def parcel(number: int) -> None:
    log.info("in the body")
    await charge(number)
    await print_label()
    log.info("in the body again")


async def test_each_line_says_where_it_was_written(kept: Kept) -> None:
    """In a body, in each attempt of a step, in a task that a step has started, and in the thread of a plain `def`."""
    log.info("outside")
    await testing.run(parcel, 7)
    where = kept.where()
    ((execution, *_),) = {(place[0],) for text, place in where.items() if text != "outside"}
    assert where == {
        "outside": (None, None, None, None),
        "in the body": (execution, "parcel", None, 1),
        "charging, attempt 1": (execution, "parcel", "charge-7", 1),
        "charging, attempt 2": (execution, "parcel", "charge-7", 2),
        "in a task of a step": (execution, "parcel", "charge-7", 2),
        "in a thread": (execution, "parcel", "print", 1),
        "in the body again": (execution, "parcel", None, 1),
    }


async def test_what_a_line_says_itself_stays(kept: Kept) -> None:
    """Who gives the fields as `extra` is right."""

    @durable("quoting")
    async def quoting() -> None:
        log.info("about another one", extra={"zart_execution_id": "other"})

    await testing.run(quoting)
    assert kept.where() == {"about another one": ("other", None, None, None)}


def _line(record: logging.LogRecord, **options: int) -> dict[str, object]:
    return json.loads(telemetry.JsonFormatter(**options).format(record))


async def test_a_line_as_json(kept: Kept) -> None:
    """Time, level, logger, message; the execution and the step; what was given as extra; the exception."""

    @step("fail")
    async def fail() -> None:
        try:
            raise ValueError("no\ncard")
        except ValueError:
            log.exception("failed with %s", "it", extra={"order": 7, "odd": {1}, "message_id": "\ud800"})

    @durable("failing")
    async def failing() -> None:
        await fail()

    await testing.run(failing)
    (record,) = kept.records
    line = _line(record, process=2)
    error = line.pop("error")
    assert isinstance(error, dict)
    assert (error["type"], error["message"]) == ("ValueError", "no\ncard")
    assert "raise ValueError" in error["stack"]
    assert str(line.pop("time")).endswith("Z")
    assert isinstance(line.pop("run_id"), str)
    assert line == {
        "level": "error",
        "logger": "shop",
        "message": "failed with it",
        "process": 2,
        "execution_id": record.zart_execution_id,  # type: ignore[attr-defined]
        "function": "failing",
        "step": "fail",
        "attempt": 1,
        "order": 7,
        "odd": "{1}",
        "message_id": "\ud800",
    }
    assert "\n" not in telemetry.JsonFormatter().format(record)


def test_extra_does_not_take_the_place_of_what_a_line_is() -> None:
    """A field of the caller's that is called like one of ours is left out, not ours."""
    record = logging.makeLogRecord(
        {"msg": "said", "name": "shop", "levelname": "INFO", "level": "mine", "logger": "mine", "time": 1}
    )
    line = _line(record)
    assert (line["logger"], line["level"], line["message"]) == ("shop", "info", "said")


def _said(capsys: pytest.CaptureFixture[str], form: str, text: str, **extra: object) -> str:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        log_to_stderr("info", form=form)
        logging.getLogger("myapp.mail").warning(text, extra=extra)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.captureWarnings(capture=False)
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_log_of_a_worker_says_it_behind_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Unless the line tells of the execution itself."""
    where = {"zart_execution_id": "bob", "zart_step": "send-email", "zart_attempt": 2}
    assert _said(capsys, "text", "patience", **where).endswith(
        "WARNING myapp.mail: patience (bob, send-email, attempt 2)"
    )
    assert _said(capsys, "text", "patience", zart_execution_id="bob").endswith("patience (bob)")
    assert _said(capsys, "text", "bob waits", zart_execution_id="bob").endswith(": bob waits")
    assert _said(capsys, "text", "patience").endswith(": patience")


def test_the_log_of_a_worker_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`--log-format json`."""
    line = json.loads(_said(capsys, "json", "patience", zart_execution_id="bob"))
    assert (line["message"], line["execution_id"], line["level"]) == ("patience", "bob", "warning")
