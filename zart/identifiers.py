"""Identifiers that the library makes up."""

import hashlib
import os
import time
import uuid


def uuid7() -> uuid.UUID:
    """A UUID of version 7: they sort by time."""
    milliseconds = time.time_ns() // 1_000_000
    number = milliseconds << 80 | int.from_bytes(os.urandom(10))
    number = number & ~(0xF << 76) | 0x7 << 76
    return uuid.UUID(int=number & ~(0x3 << 62) | 0x2 << 62)


def child_id(parent_id: str, run_id: uuid.UUID, call: tuple[str, str, int], attempt: int) -> str:
    """The id of a child execution: the same for each replay of the call, and nobody else's.

    `call` is its path, name and occurrence; `attempt` the body's, since a child that is tried afresh is another one.
    Callers of a client cannot choose an id with a `~`, so none of these can be taken before its time.
    """
    path, name, occurrence = call
    told = f"{path}\0{name}\0{occurrence}\0{attempt}".encode()
    drawn = hashlib.blake2b(told, key=run_id.bytes, digest_size=12).hexdigest()
    return f"{parent_id.partition('~')[0]}~{drawn}"
