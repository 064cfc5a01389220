"""The log of `zart worker` and `zart dev`: one readable line per entry, on stderr.

    14:02:11.352 INFO    ann waits for event 'email-verified' until Tue 24 Nov 14:02:11 UTC
    14:02:12.014 WARNING myapp.mail: the server asks for patience (bob, send-email, attempt 2)

Entries of zart's own loggers stand without a name; others carry theirs, and what is written in an execution carries its
id and the step. Where several processes share one log, each says which it is: `14:02:11.352 [2] INFO …`.

With `--log-format json` each entry is a JSON object instead; see `zart.telemetry.JsonFormatter`.
"""

import datetime as dt
import logging
import sys
from typing import Final

from zart.telemetry import JsonFormatter, LogContext

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("text", "json")


class _Line(logging.Formatter):
    def __init__(self, process: int | None) -> None:
        super().__init__()
        self._process = f"[{process}] " if process is not None else ""

    def format(self, record: logging.LogRecord) -> str:
        own = record.name == "zart" or record.name.startswith("zart.")
        message = record.getMessage()
        if own:
            message = " ".join(message.split("\n"))
        message += _where(record, message)
        if record.exc_info:
            message += f"\n{self.formatException(record.exc_info)}"
        at = dt.datetime.fromtimestamp(record.created, dt.UTC).astimezone()
        name = "" if own else f"{record.name}: "
        return (
            f"{at:%H:%M:%S}.{at.microsecond // 1000:03d} {self._process}{record.levelname:<7} {name}{message}"
        )


def _where(record: logging.LogRecord, message: str) -> str:
    """The execution and the step that an entry belongs to, unless it tells of them itself."""
    known = vars(record)
    execution, step = known.get("zart_execution_id"), known.get("zart_step")
    if execution is None or (step is None and execution in message):
        return ""
    if step is None:
        return f" ({execution})"
    attempt = known.get("zart_attempt")
    return f" ({execution}, {step}, attempt {attempt})" if attempt is not None else f" ({execution}, {step})"


def log_to_stderr(level: str, *, process: int | None = None, form: str = "text") -> None:
    """Send every logger's entries of `level` and above to stderr. Before the app is imported: its own set-up wins."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(LogContext())
    handler.setFormatter(JsonFormatter(process=process) if form == "json" else _Line(process))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(capture=True)
    # The pool reports each connection that it makes and loses; what matters of that is said by zart.
    logging.getLogger("psycopg.pool").setLevel(max(logging.WARNING, logging.getLogger().level))
