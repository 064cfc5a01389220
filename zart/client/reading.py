"""Rows of the database as what a client returns.

A value that is encrypted with a key that is not here does not keep people from seeing the rest: it is shown as that.
"""

import datetime as dt
from typing import Any

import msgspec

from zart._engine.lanes import step_of
from zart.client.database import Row
from zart.encryption import Payloads, Place
from zart.errors import Failure, PayloadError, PayloadUnreadable
from zart.failures import failure_from_json
from zart.state import Execution, Record, Run, WorkerStatus


def read_execution(row: Row, payloads: Payloads) -> Execution:
    """A row of `status`, `page` or `live_page`."""
    return Execution(
        id=row[0],
        name=row[1],
        status=row[2],
        run_id=row[3],
        waiting_for=row[4],
        cancelling=row[5],
        served=row[6],
        queue=row[7],
        priority=row[8],
        version=row[9],
        failure=_failure(row[10], Place(row[0], "failure"), payloads),
        created_at=row[11],
        finished_at=row[12],
    )


def read_record(row: Row, execution_id: str, payloads: Payloads) -> Record:
    """A row of `records`."""
    (
        path,
        name,
        occurrence,
        kind,
        state,
        attempts,
        started,
        finished,
        until,
        failure,
        child,
        born,
        progress,
        given,
    ) = row
    key = (path, name, occurrence, kind)
    # What a child came to was copied from its own row.
    place = Place(execution_id, "failure", *key) if given is None else Place(given, "failure")
    return Record(
        key=_key(path, name, occurrence),
        kind=kind,
        name=name,
        state=state,
        attempts=attempts,
        started_at=started or born,
        finished_at=finished,
        until=until,
        failure=_failure(failure, place, payloads),
        child_id=child,
        progress=_json(progress, Place(execution_id, "progress", *key), payloads),
    )


def read_run(row: Row, execution_id: str, payloads: Payloads) -> Run:
    """A row of `each_run`."""
    run_id, status, started, ended, failure = row
    told = _failure(failure, Place(execution_id, "failure"), payloads)
    return Run(run_id=run_id, status=status, started_at=started, ended_at=ended, failure=told)


def named(name: str, version: str | None) -> str:
    """A durable function, for people."""
    return name if version is None else f"{name} version {version}"


def read_worker(row: Row, names: list[Row]) -> WorkerStatus:
    """A row of `workers`, with rows of `lane_names`."""
    *_, lanes = row
    served = [(queue, name, version) for lane, queue, name, version in names if lane in lanes]
    functions: dict[str, None] = {}
    steps: dict[str, None] = {}
    for _, name, version in served:
        if (step := step_of(name)) is not None:
            steps[step] = None
        else:
            functions[named(name, version)] = None
    return WorkerStatus(
        id=row[0],
        host=row[1],
        pid=row[2],
        alive=row[3],
        idle=row[4],
        started_at=row[5],
        heartbeat_at=row[6],
        held=row[7],
        functions=list(functions),
        steps=list(steps),
        queues=sorted({queue for queue, _, _ in served}),
    )


def read_notes(notes: list[Row], attempts: list[Row], execution_id: str, payloads: Payloads) -> list[str]:
    """What happened beside the journal, in the order of time: one line each, times in UTC."""
    place = Place(execution_id, "note")
    lines: list[tuple[dt.datetime, str]] = [
        (at, _note(what, author, _text(note, place, payloads))) for at, what, author, note in notes
    ]
    lines += [(row[5], _attempt(row, execution_id, payloads)) for row in attempts if row[5] is not None]
    lines.sort(key=lambda line: line[0])
    return [f"{_time(at)} {text}" for at, text in lines]


def _note(what: str, author: str | None, note: str | None) -> str:
    return what + (f" by {author}" if author else "") + (f": {note}" if note else "")


def _attempt(row: Row, execution_id: str, payloads: Payloads) -> str:
    path, name, occurrence, attempt, body_attempt, _, next_at, failure, kind = row
    if failure is None:
        key = _key(path, name, occurrence)
        return f"attempt {attempt} of {key!r} is set aside: its saga was undone, and the body runs again"
    told = f"attempt {attempt} of {_key(path, name, occurrence)!r} failed"
    if body_attempt > 1:
        told += f" in run {body_attempt} of the body"
    place = Place(execution_id, "failure", path, name, occurrence, kind)
    if (stored := _failure(failure, place, payloads)) is not None:
        told += f": {stored.type}: {stored.message}" if stored.message else f": {stored.type}"
    return told + (f"; the next one is due at {_time(next_at)}" if next_at is not None else "")


def _key(path: str, name: str, occurrence: int) -> str:
    return f"{path}{name}#{occurrence}" if occurrence > 1 else f"{path}{name}"


def _failure(stored: str | None, place: Place, payloads: Payloads) -> Failure | None:
    """What is stored; one row that somebody has edited must not keep people from seeing all the others."""
    if stored is None:
        return None
    try:
        return failure_from_json(payloads.decrypt(stored, place))
    except PayloadUnreadable as error:
        return unreadable_failure(error, told=payloads.codec is not None)
    except PayloadError as error:
        return Failure(type="unknown", message=str(error), step=None, attempts=1, traceback="")


def unreadable_failure(error: PayloadUnreadable, *, told: bool) -> Failure:
    """Stands for a failure that cannot be decrypted; `told`: with the reason and the remedy."""
    return Failure(
        type=_shown(error), message=str(error) if told else "", step=None, attempts=1, traceback=""
    )


def _shown(error: PayloadUnreadable) -> str:
    return f"encrypted (key {error.key})" if error.key else "encrypted"


def _text(stored: str | None, place: Place, payloads: Payloads) -> str | None:
    if stored is None:
        return None
    try:
        return payloads.decrypt(stored, place)
    except PayloadUnreadable as error:
        return _shown(error)


def _json(stored: str | None, place: Place, payloads: Payloads) -> str | None:
    if stored is None:
        return None
    try:
        return payloads.decrypt(stored, place)
    except PayloadUnreadable as error:
        return msgspec.json.encode(_shown(error)).decode()


def _time(at: Any) -> str:
    return f"{at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + "Z"
