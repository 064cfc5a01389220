"""The execution and the step on each line of a log.

`LogContext` is a filter for handlers. It lets everything pass, and puts on each record where it was written: in which
execution, of which function, in which attempt of which step. That holds for whatever logger writes in the body of a
durable function or in a step, also in the thread of a plain `def`, as long as the handler is called where the line is
written: in front of a queue the filter belongs to the `QueueHandler`. Zart's own lines about an execution carry its id,
wherever they are written.
"""

import datetime as dt
import json
import logging
import traceback
from typing import Any, Final

from zart.context import Place, place
from zart.errors import UsageError, ZartError
from zart.telemetry.hub import hub

FIELDS: Final = (
    "zart_execution_id",
    "zart_run_id",
    "zart_function",
    "zart_step",
    "zart_attempt",
    "zart_trace_id",
    "zart_span_id",
)
"""What `LogContext` puts on a record; None where it is not known."""


class LogContext(logging.Filter):
    """A filter that puts execution, function, step and attempt on each record: `handler.addFilter(LogContext())`.

    The attempt is that of the step, in a body that of the body. The ids of trace and span are there while
    `zart.telemetry.opentelemetry()` is on and a span is.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True."""
        known = vars(record)
        here = place.get()
        if here is not None and known.get("zart_execution_id") is None:
            known.update(_where(here))
        if known.get("zart_trace_id") is None and (ids := hub.trace_ids()) is not None:
            known["zart_trace_id"], known["zart_span_id"] = ids
        for field in FIELDS:
            known.setdefault(field, None)
        return True


def about(execution_id: str, *, step: str | None = None) -> dict[str, Any]:
    """`extra=` of a line about an execution that is written outside of it."""
    return {"zart_execution_id": execution_id, "zart_step": step}


def _where(here: Place) -> dict[str, Any]:
    try:
        context = here.context()
        found = {
            "zart_execution_id": context.execution_id,
            "zart_run_id": context.run_id,
            "zart_function": context.name,
            "zart_attempt": context.attempt,
        }
    except ZartError:  # a line is worth more than what stands beside it
        return {}
    try:
        step = here.step_context()
    except UsageError:  # it is a body
        return found
    return found | {"zart_step": step.step_name, "zart_attempt": step.step_attempt}


class JsonFormatter(logging.Formatter):
    """One JSON object for each line: time, level, logger, message, what `LogContext` knows, the exception, and `extra`.

    It needs no `LogContext` in front of it to be valid, but has nothing to say of executions without one. What cannot
    be written as JSON is written as its `str`.
    """

    def __init__(self, *, process: int | None = None) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        at = dt.datetime.fromtimestamp(record.created, dt.UTC)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._process is not None:
            line["process"] = self._process
        given = vars(record)
        for field in FIELDS:
            if given.get(field) is not None:
                line[field.removeprefix("zart_")] = given[field]
        for name, value in given.items():
            if name not in _STANDARD and name not in FIELDS:
                line.setdefault(name, value)
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = {
                "type": _full_name(type(error)),
                "message": str(error),
                "stack": "".join(traceback.format_exception(error)),
            }
        if record.stack_info:
            line["stack"] = record.stack_info
        text = json.dumps(line, default=str, ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate, as JSON writes it


_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _full_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
