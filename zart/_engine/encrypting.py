"""Where the engine's records are encrypted, on their way into a statement; `decrypting.py` is the way back.

    a batch of the journal                       sending.py
    a child under a chosen id                    named_children.py
    the record of a step in its transaction      transactions.py, own_records.py

Everything before that sees plain values. Records are copied, never changed: what an entry holds goes to the body, too,
and a batch may be sent more than once.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import TypeVar, assert_never

from msgspec.structs import replace

from zart._engine.entries import (
    Blocked,
    BodyRetry,
    Cancelled,
    Change,
    Completed,
    ContinuedAsNew,
    Ending,
    Entry,
    Failed,
    FailedAttempt,
    Key,
    Paused,
    Released,
    StepEnded,
    StepWork,
    Suspended,
    Work,
)
from zart._engine.folding import Batch
from zart.encryption import Payloads, Place
from zart.encryption.places import Column
from zart.errors import SerializationError

T = TypeVar("T")

_log = logging.getLogger("zart.journal")

_SHORTEST, _LONGEST = 0.05, 5.0


def encrypted_batch(batch: Batch, payloads: Payloads) -> Batch:
    """What is sent in its place. Raises SerializationError when the codec does."""
    return Batch(
        [encrypted_entry(entry, payloads) for entry in batch.entries],
        [_encrypted_change(change, payloads) for change in batch.changes],
        {
            token: [encrypted_entry(entry, payloads) for entry in before]
            for token, before in batch.earlier.items()
        },
    )


def encrypted_entry(entry: Entry, payloads: Payloads) -> Entry:
    if not entry.execution_id:
        raise TypeError(f"nobody is said to have made the entry {entry.key}")
    execution, key = entry.execution_id, entry.key

    def of(value: bytes | None, column: Column) -> bytes | None:
        return None if value is None else payloads.encrypt(value, Place(execution, column, *key))

    digest, arguments, attempt = entry.digest, entry.arguments, entry.failed_attempt
    return replace(
        entry,
        digest=None if digest is None else payloads.encrypt_digest(digest, Place(execution, "digest", *key)),
        arguments=None if arguments is None else (of(arguments.encode(), "arguments") or b"").decode(),
        result=of(entry.result, "result"),
        failure=of(entry.failure, "failure"),
        progress=of(entry.progress, "progress"),
        data=of(entry.data, "data"),
        failed_attempt=None if attempt is None else _encrypted_attempt(attempt, execution, payloads),
        work=None if entry.work is None else _encrypted_work(entry.work, execution, key, payloads),
    )


def _encrypted_attempt(attempt: FailedAttempt, execution: str, payloads: Payloads) -> FailedAttempt:
    if attempt.failure is None:
        return attempt
    return attempt._replace(
        failure=payloads.encrypt(attempt.failure, Place(execution, "failure", *attempt.key))
    )


def _encrypted_work(work: Work, execution: str, key: Key, payloads: Payloads) -> Work:
    if isinstance(work, StepWork):
        return replace(work, input=payloads.encrypt_input(work.input, Place(execution, "input", *key)))
    payload = work.payload
    return replace(
        work,
        payload=None if payload is None else payloads.encrypt(payload, Place(work.id, "input")),
        digest=payloads.encrypt_digest(work.digest, Place(work.id, "digest")),
    )


def _encrypted_change(change: Change, payloads: Payloads) -> Change:
    execution = change.execution_id
    notes = tuple(
        (what, payloads.encrypt(note.encode(), Place(execution, "note")).decode())
        for what, note in change.notes
    )
    return replace(change, ending=_encrypted_ending(change.ending, execution, payloads), notes=notes)


def _encrypted_ending(ending: Ending, execution: str, payloads: Payloads) -> Ending:
    match ending:
        case Completed():
            return replace(ending, result=payloads.encrypt(ending.result, Place(execution, "result")))
        case Failed() | Cancelled():
            return replace(ending, failure=payloads.encrypt(ending.failure, Place(execution, "failure")))
        case Blocked():
            undo = ending.failed_undo
            return replace(
                ending,
                failure=payloads.encrypt(ending.failure, Place(execution, "failure")),
                failed_undo=None if undo is None else _encrypted_attempt(undo, execution, payloads),
            )
        case BodyRetry():
            afresh = tuple(_encrypted_attempt(attempt, execution, payloads) for attempt in ending.afresh)
            return replace(ending, afresh=afresh)
        case ContinuedAsNew():
            payload = ending.payload
            return replace(
                ending,
                payload=None if payload is None else payloads.encrypt(payload, Place(execution, "input")),
            )
        case StepEnded():
            result, failure = ending.result, ending.failure
            return replace(
                ending,
                result=None
                if result is None
                else payloads.encrypt(result, Place(execution, "result", *ending.key)),
                failure=None
                if failure is None
                else payloads.encrypt(failure, Place(execution, "failure", *ending.key)),
            )
        case Suspended() | Paused() | Released():
            return ending
        case _:
            assert_never(ending)


async def patiently(encrypt: Callable[[], T]) -> T:
    """What `encrypt` returns. A codec that fails is like a database that is away: it is asked again until it works."""
    tries = 0
    while True:
        try:
            return encrypt()
        except SerializationError as error:
            if tries & (tries - 1) == 0:  # the first, second, fourth, eighth time
                _log.warning("nothing can be written (%s); it is tried again, and executions wait", error)
            longest = min(_LONGEST, _SHORTEST * 2.0 ** min(tries, 10))
            await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311 (spreads retries)
            tries += 1
