"""Rows of the database as what a client returns."""

import datetime as dt
from typing import Any

from zart._engine.lanes import step_of
from zart.client.database import Row
from zart.errors import Failure, PayloadError
from zart.failures import failure_from_json
from zart.state import Execution, Record, Run, WorkerStatus


def read_execution(row: Row) -> Execution:
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
        failure=_failure(row[10]),
        created_at=row[11],
        finished_at=row[12],
    )


def read_record(row: Row) -> Record:
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
    ) = row
    return Record(
        key=_key(path, name, occurrence),
        kind=kind,
        name=name,
        state=state,
        attempts=attempts,
        started_at=started or born,
        finished_at=finished,
        until=until,
        failure=_failure(failure),
        child_id=child,
        progress=progress,
    )


def read_run(row: Row) -> Run:
    """A row of `each_run`."""
    run_id, status, started, ended, failure = row
    return Run(run_id=run_id, status=status, started_at=started, ended_at=ended, failure=_failure(failure))


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
            functions[name if version is None else f"{name} version {version}"] = None
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


def read_notes(notes: list[Row], attempts: list[Row]) -> list[str]:
    """What happened beside the journal, in the order of time: one line each, times in UTC."""
    lines: list[tuple[dt.datetime, str]] = [
        (at, _note(what, author, note)) for at, what, author, note in notes
    ]
    lines += [(row[5], _attempt(row)) for row in attempts if row[5] is not None]
    lines.sort(key=lambda line: line[0])
    return [f"{_time(at)} {text}" for at, text in lines]


def _note(what: str, author: str | None, note: str | None) -> str:
    return what + (f" by {author}" if author else "") + (f": {note}" if note else "")


def _attempt(row: Row) -> str:
    path, name, occurrence, attempt, body_attempt, _, next_at, failure = row
    if failure is None:
        key = _key(path, name, occurrence)
        return f"attempt {attempt} of {key!r} is set aside: its saga was undone, and the body runs again"
    told = f"attempt {attempt} of {_key(path, name, occurrence)!r} failed"
    if body_attempt > 1:
        told += f" in run {body_attempt} of the body"
    if (stored := _failure(failure)) is not None:
        told += f": {stored.type}: {stored.message}" if stored.message else f": {stored.type}"
    return told + (f"; the next one is due at {_time(next_at)}" if next_at is not None else "")


def _key(path: str, name: str, occurrence: int) -> str:
    return f"{path}{name}#{occurrence}" if occurrence > 1 else f"{path}{name}"


def _failure(stored: str | None) -> Failure | None:
    """What is stored; one row that somebody has edited must not keep people from seeing all the others."""
    if stored is None:
        return None
    try:
        return failure_from_json(stored)
    except PayloadError as error:
        return Failure(type="unknown", message=str(error), step=None, attempts=1, traceback="")


def _time(at: Any) -> str:
    return f"{at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + "Z"
