"""Settings, read once: a worker's, and where the database is."""

import datetime as dt
import os
import re
from dataclasses import dataclass
from typing import Final, final
from urllib.parse import unquote

import psycopg
from psycopg import conninfo

from zart.durations import Duration, format_duration, parse_duration
from zart.errors import UsageError

EMBEDDED: Final = "embedded"
"""The DSN of the server that is kept under `.zart/`."""
DSN_VARIABLES: Final = ("ZART_DATABASE_URL", "DATABASE_URL")
"""Where a DSN is looked for when none is given, in this order."""
DIRECT_VARIABLE: Final = "ZART_DIRECT_URL"
"""The DSN of a connection past a pooler, for LISTEN and the heartbeat."""

_URL: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9.-]*)(?P<driver>\+[A-Za-z0-9_]+)?://", re.ASCII)
_OTHER_DATABASES: Final = {
    "cockroachdb": "CockroachDB",
    "mariadb": "MariaDB",
    "mongodb": "MongoDB",
    "mssql": "SQL Server",
    "mysql": "MySQL",
    "oracle": "Oracle",
    "redis": "Redis",
    "sqlite": "SQLite",
}
_ACCEPTED: Final = 'use "postgresql://user@host:5432/database", "host=… dbname=… user=…" or "embedded"'
_KEYWORDS: Final = re.compile(r"\w+\s*=")
_NAME: Final = re.compile(r"(?<!\w)(\w+)\s*=\s*")
_VALUE: Final = re.compile(
    # Quoted, or from an open quote to the end, or up to a space. Words behind it that are no keywords are taken for a
    # part of it.
    r"'(?:\\.|[^'\\])*'(?=\s|\Z)|'.*|(?:\\.|[^\s\\]|\\\Z)*(?:\s+[^\s=]+(?=\s|\Z)(?!\s*=))*",
    re.DOTALL,
)
_NO_VALUE: Final = re.compile(r"(?<=\s)(?=\w+\s*=)")
_SECRET: Final = re.compile(r"passw|pwd|secret|passphrase|token|scram_|_key", re.IGNORECASE)
_NO_TEXT: Final = re.compile("[\x00\ud800-\udfff]")
_SIGNS: Final = "special signs in it are written %40 for @, %2F for /, %3A for :, %3D for ="


@final
@dataclass(frozen=True, init=False)
class WorkerConfig:
    """How a worker works. Durations are timedeltas once it is made; UsageError names a field that cannot be.

    `poll_interval` is how often it looks for work where it cannot be told of new work. Of at most
    `max_concurrent_tasks` executions at once it claims at most `max_tasks_per_poll` in one go; plain `def`
    steps share `max_threads` threads. A worker not heard of for `orphan_timeout` is taken for dead, so that
    it must be heard of every `heartbeat_interval`; one whose event loop is blocked for `wedge_timeout`
    (default: ten times `orphan_timeout`) gives up by itself. A shutdown waits `shutdown_timeout` for running
    steps. An execution whose workers died `max_recoveries` times in a row without a new record is blocked.
    One execution may have `max_inflight_steps` live steps. Up to `max_parked_bodies` bodies that wait are kept
    in memory beyond that, so that they need no replay when this worker goes on with them; 0 keeps none.
    `queues` limits the worker to these queues; () means every queue of the registry. With `retention` the worker
    prunes what ended longer ago, for all workers; with `keep_ids` their ids stay until they are as old as that.
    """

    poll_interval: dt.timedelta
    max_tasks_per_poll: int
    max_concurrent_tasks: int
    max_threads: int
    shutdown_timeout: dt.timedelta
    orphan_timeout: dt.timedelta
    heartbeat_interval: dt.timedelta
    wedge_timeout: dt.timedelta
    max_recoveries: int
    max_inflight_steps: int
    max_parked_bodies: int
    queues: tuple[str, ...]
    retention: dt.timedelta | None
    keep_ids: dt.timedelta | None

    def __init__(
        self,
        *,
        poll_interval: Duration = "1s",
        max_tasks_per_poll: int = 100,
        max_concurrent_tasks: int = 100,
        max_threads: int = 40,
        shutdown_timeout: Duration = "5s",
        orphan_timeout: Duration = "30s",
        heartbeat_interval: Duration = "5s",
        wedge_timeout: Duration | None = None,
        max_recoveries: int = 10,
        max_inflight_steps: int = 256,
        max_parked_bodies: int = 1000,
        queues: tuple[str, ...] = (),
        retention: Duration | None = None,
        keep_ids: Duration | None = None,
    ) -> None:
        orphan = _positive("orphan_timeout", orphan_timeout)
        heartbeat = _positive("heartbeat_interval", heartbeat_interval)
        if heartbeat > orphan / 2:
            raise UsageError(
                f"heartbeat_interval is {format_duration(heartbeat)}, but it must be at most half of "
                "orphan_timeout "
                f"({format_duration(orphan)}): otherwise a healthy worker is taken for dead after one late "
                "heartbeat"
            )
        values = {
            "poll_interval": _positive("poll_interval", poll_interval),
            "max_tasks_per_poll": _count("max_tasks_per_poll", max_tasks_per_poll, least=1),
            "max_concurrent_tasks": _count("max_concurrent_tasks", max_concurrent_tasks, least=1),
            "max_threads": _count("max_threads", max_threads, least=1),
            "shutdown_timeout": parse_duration(shutdown_timeout, what="shutdown_timeout"),
            "orphan_timeout": orphan,
            "heartbeat_interval": heartbeat,
            "wedge_timeout": 10 * orphan
            if wedge_timeout is None
            else _positive("wedge_timeout", wedge_timeout),
            "max_recoveries": _count("max_recoveries", max_recoveries, least=0),
            "max_inflight_steps": _count("max_inflight_steps", max_inflight_steps, least=1),
            "max_parked_bodies": _count("max_parked_bodies", max_parked_bodies, least=0),
            "queues": _queues(queues),
            "retention": None if retention is None else _positive("retention", retention),
            "keep_ids": _kept_ids(keep_ids, retention),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _kept_ids(keep_ids: Duration | None, retention: Duration | None) -> dt.timedelta | None:
    if keep_ids is None:
        return None
    kept = _positive("keep_ids", keep_ids)
    if retention is None:
        raise UsageError("keep_ids goes with retention: without one nothing is pruned, and ids stay anyway")
    if kept < (least := _positive("retention", retention)):
        raise UsageError(
            f"keep_ids is {format_duration(kept)}, shorter than retention ({format_duration(least)}): an id stays at "
            "least as long as what belongs to it"
        )
    return kept


def _positive(name: str, value: Duration) -> dt.timedelta:
    duration = parse_duration(value, what=name)
    if not duration:
        raise UsageError(f"{name} is zero, but it must be longer")
    return duration


def _count(name: str, value: object, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1_000_000:
        raise UsageError(f"{name} is {value!r}, but it must be a whole number from {least} to 1,000,000")
    return value


def _queues(queues: object) -> tuple[str, ...]:
    if isinstance(queues, (tuple, list)):
        names = tuple[object, ...](queues)  # pyright: ignore[reportUnknownArgumentType]
        if all(isinstance(name, str) and name for name in names):
            return tuple(str(name) for name in names)
    raise UsageError(
        f'queues is {queues!r}, but it must be a tuple of queue names, such as ("default", "mail")'
    )


def resolve_dsn(explicit: str | None = None) -> tuple[str, str]:
    """The DSN to use and where it came from: the one given, else ZART_DATABASE_URL, else DATABASE_URL.

    Raises UsageError when there is none, or when it is another database's or no DSN at all.
    """
    found = find_dsn(explicit)
    if found is None:
        raise UsageError(
            "no database is named: give a DSN, or set ZART_DATABASE_URL or DATABASE_URL; the DSN "
            f"{EMBEDDED!r} starts a server under .zart/"
        )
    return found


def find_dsn(explicit: str | None = None) -> tuple[str, str] | None:
    """Like `resolve_dsn`, but None when no database is named anywhere."""
    if explicit is not None:
        return read_dsn(explicit, "the DSN"), "the DSN given"
    for variable in DSN_VARIABLES:
        if value := os.environ.get(variable):
            return read_dsn(value, variable), variable
    return None


def find_direct_dsn() -> str | None:
    """The DSN past a pooler in ZART_DIRECT_URL, if set. Raises UsageError when it is none of PostgreSQL."""
    value = os.environ.get(DIRECT_VARIABLE)
    return read_dsn(value, DIRECT_VARIABLE) if value else None


def read_dsn(dsn: object, what: str) -> str:
    """Return a DSN as libpq reads it; a driver's name as SQLAlchemy writes it, `postgresql+psycopg://`, is
    dropped.

    `what` is how the error calls it. Raises UsageError for another database's address, for what is no DSN, and
    for one that libpq or the resolver could not read; no error shows a password.
    """
    if not isinstance(dsn, str):
        raise UsageError(f"{what} is {type(dsn).__name__}, not text: {_ACCEPTED}")
    text = dsn.strip()
    if text == EMBEDDED:
        return text
    if _NO_TEXT.search(text):
        raise UsageError(f"{what} contains NUL or half of a character, which cannot be in an address")
    url = _URL.match(text)
    if url is None:
        if not _KEYWORDS.match(text):
            raise UsageError(f"{what} is {_shown(text) or 'empty'}, which is no DSN: {_ACCEPTED}")
        address = text
    else:
        scheme = url["scheme"].lower()
        if scheme not in {"postgresql", "postgres"}:
            named = _OTHER_DATABASES.get(scheme, f"{scheme}://")
            raise UsageError(
                f"{what} is the address of another database ({named}), but zart needs PostgreSQL: {_ACCEPTED}"
            )
        rest = text[url.end() :]
        if url["driver"] == "+asyncpg":
            # The one option that asyncpg's addresses commonly carry and libpq calls otherwise.
            rest = re.sub(r"(?<=[?&])ssl=true\b", "sslmode=require", rest)
            rest = re.sub(r"(?<=[?&])ssl=", "sslmode=", rest)
        address = f"postgresql://{rest}"
    if (trouble := _unreadable(address)) is not None:
        raise UsageError(f"{what}, {_shown(text)}, cannot be read: {trouble}")
    return address


def _shown(text: str) -> str:
    masked = mask_dsn(text)
    return masked if len(masked) <= 300 else f"{masked[:297]}..."


def _unreadable(address: str) -> str | None:
    """Why an address cannot be used, in words without any of its secrets; None when it can be."""
    try:
        options = conninfo.conninfo_to_dict(address)
    except psycopg.Error:  # its text may quote the password
        return _SIGNS
    # A bare sign in a password shifts the parts, and an error of libpq would then quote a piece of it as the port.
    if not re.fullmatch(r"[0-9, ]*", str(options.get("port") or "")):
        return _SIGNS
    if not re.fullmatch(r"\s*-?[0-9]{0,9}\s*", str(options.get("connect_timeout") or "")):
        return "connect_timeout must be a whole number of seconds"
    for host in str(options.get("host") or "").split(","):
        try:
            host.encode() if host.startswith(("/", "@")) else host.encode("idna")
        except UnicodeError:
            return "a host in it cannot be the name of one"
    return None


def mask_dsn(dsn: str) -> str:
    """Return a DSN, as a URL or in keyword form, with its passwords replaced by ***, fit for logs.

    What cannot be told from a password, since the DSN is malformed, is replaced as well.
    """
    text = dsn.strip()
    url = _URL.match(text)
    if url is not None:
        return text[: url.end()] + _mask_url(text[url.end() :])
    if _KEYWORDS.match(text):
        return _mask_keywords(text)
    if "@" in text:
        return f"***@{text.rpartition('@')[2]}"
    name, colon, _ = text.partition(":")
    return f"{name}{':***' if colon else ''}"


def _mask_url(rest: str) -> str:
    before, question, options = rest.partition("?")
    login = ""
    if "@" in rest:
        # A password with a bare ? or @ in it: no valid URL, but nothing of it may show.
        secret, _, after = rest.rpartition("@")
        user = re.split("[:@]", secret, maxsplit=1)[0]
        login = f"{user}{':***' if user != secret else ''}@"
        before, question, options = after.partition("?")
    host, slash, name = before.partition("/")
    host = re.sub(r":(?![0-9]*(?:,|\Z))[^,:\]]*(?=,|\Z)", ":***", host)
    pieces = [
        f"{piece.partition('=')[0]}=***" if _SECRET.search(unquote(piece.partition("=")[0])) else piece
        for piece in (piece if "=" in piece else "***" for piece in options.split("&"))
        if options
    ]
    return f"{login}{host}{slash}{name}{question}{'&'.join(pieces)}"


def _mask_keywords(text: str) -> str:
    parts: list[str] = []
    position = 0
    while (name := _NAME.search(text, position)) is not None:
        parts += [_mask_stray(text[position : name.start()]), name[0]]
        position = name.end()
        is_secret = _SECRET.search(name[1]) is not None
        if not is_secret and _NO_VALUE.match(text, position):
            # "host= password=x" gives the host the name "password=x", says libpq; whoever wrote it meant a password.
            continue
        value = _VALUE.match(text, position)
        if value is not None:
            parts.append("***" if is_secret or _SECRET.search(value[0]) else value[0])
            position = value.end()
    return "".join([*parts, _mask_stray(text[position:])]).rstrip()


def _mask_stray(text: str) -> str:
    """What stands between two values and has no name may be the rest of a password with a quote in it."""
    return " *** " if text.strip() else text
