"""Where what a worker gets is decrypted: a claim, and news of what it holds.

Where nothing is encrypted, a look at the first bytes of each value tells that. Records are copied, never changed.

An execution whose values cannot be decrypted is `blocked`: nothing of it has run, and nothing is lost. A scheduled step
cannot be blocked, and to fail it would be to lose it: its task waits for a while, and is claimed again by whoever comes
first. So does any execution where the codec says that its trouble is a passing one.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from zart._engine import endings
from zart._engine.entries import Claim, Ending, StoredEntry, StoredEvent, Suspended
from zart.encryption import Payloads, Place
from zart.encryption.envelope import PREFIX, is_envelope
from zart.encryption.payloads import is_encrypted_digest
from zart.encryption.places import Column
from zart.errors import PayloadUnreadable

AGAIN_AFTER: Final = dt.timedelta(seconds=30)
"""When a claim is tried again whose values could not be decrypted, and that was not blocked."""


def decrypted_claim(claim: Claim, payloads: Payloads) -> Claim:
    """The claim with plain values. Raises PayloadUnreadable."""
    execution, payload = claim.execution_id, claim.payload
    if payload is not None and is_envelope(payload):
        place = Place(execution, "input")
        if claim.step is not None:
            place = Place(execution, "input", *claim.step)
        claim = replace(claim, payload=payloads.decrypt(payload, place))
    if claim.entries:
        claim = replace(claim, entries=decrypted_entries(claim.entries, execution, payloads))
    if claim.arrived:
        claim = replace(claim, arrived=decrypted_entries(claim.arrived, execution, payloads))
    if claim.events:
        claim = replace(claim, events=decrypted_events(claim.events, execution, payloads))
    return claim


def decrypted_entries(
    entries: Sequence[StoredEntry], execution: str, payloads: Payloads
) -> list[StoredEntry]:
    return [
        _decrypted_entry(entry, execution, payloads) if _is_encrypted(entry) else entry for entry in entries
    ]


def decrypted_events(events: Sequence[StoredEvent], execution: str, payloads: Payloads) -> list[StoredEvent]:
    return [
        event._replace(payload=payloads.decrypt(event.payload, Place(execution, "event", name=event.name)))
        if event.payload is not None and is_envelope(event.payload)
        else event
        for event in events
    ]


def _is_encrypted(entry: StoredEntry) -> bool:
    """Whether any value of it is. Every record of a replay passes here, also where nothing is encrypted."""
    return (
        ((value := entry.result) is not None and value.startswith(PREFIX))
        or ((value := entry.failure) is not None and value.startswith(PREFIX))
        or ((value := entry.arguments) is not None and value.startswith(PREFIX))
        or ((value := entry.progress) is not None and value.startswith(PREFIX))
        or ((value := entry.data) is not None and value.startswith(PREFIX))
        or is_encrypted_digest(entry.digest)
    )


def _decrypted_entry(entry: StoredEntry, execution: str, payloads: Payloads) -> StoredEntry:
    key = entry.key

    def of(stored: str | None, column: Column) -> str | None:
        return None if stored is None else payloads.decrypt(stored, Place(execution, column, *key))

    # What a child came to was copied from its own row, unless nobody ever had it to do.
    child = entry.child[0] if entry.child is not None and entry.given_away else None

    def of_end(stored: str | None, column: Column) -> str | None:
        if child is None or stored is None:
            return of(stored, column)
        return payloads.decrypt(stored, Place(child, column))

    digest = entry.digest
    return replace(
        entry,
        digest=None if digest is None else payloads.decrypt_digest(digest, Place(execution, "digest", *key)),
        arguments=of(entry.arguments, "arguments"),
        result=of_end(entry.result, "result"),
        failure=of_end(entry.failure, "failure"),
        progress=of(entry.progress, "progress"),
        data=of(entry.data, "data"),
    )


def set_aside(claim: Claim, error: PayloadUnreadable, now: dt.datetime) -> Ending:
    """What becomes of a claim whose values cannot be decrypted."""
    if claim.step is None and not error.passing:
        return endings.blocked(error, "unreadable")
    return Suspended(
        seen=claim.signal,
        wake_at=now + AGAIN_AFTER,
        waiting_for="what decrypts its payloads" + (f": the key {error.key!r}" if error.key else ""),
    )
