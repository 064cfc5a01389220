# ruff: noqa: INP001 (no package: the directory itself is on the path)
"""The codec of the mode `encrypted`, which ZART_PAYLOAD_CODEC names: keys of Zart's own, and the place stands beside.

So a test that looks into the tables can read a value without saying where it belongs, and a value that is read at
another place than it was written for says both.
"""

import base64
import hashlib
import json
from typing import Any

from zart import PayloadKeys

_HEAD = 4
"""Bytes that tell the length of the place."""


class Codec:
    def __init__(self) -> None:
        self._keys = PayloadKeys({"suite": hashlib.sha256(b"the key of the suite").digest()})
        self.key_id = self._keys.key_id

    def encode(self, plain: bytes, associated: bytes, /) -> bytes:
        return len(associated).to_bytes(_HEAD) + associated + self._keys.encode(plain, associated)

    def decode(self, data: bytes, associated: bytes, /) -> bytes:
        place, encrypted = _parts(data)
        if place != associated:
            raise ValueError(f"it was written for {place!r}, and is read at {associated!r}")
        return self._keys.decode(encrypted, associated)

    def read(self, data: bytes) -> bytes:
        """What was encrypted, wherever that belongs."""
        place, encrypted = _parts(data)
        return self._keys.decode(encrypted, place)


def _parts(data: bytes) -> tuple[bytes, bytes]:
    end = _HEAD + int.from_bytes(data[:_HEAD])
    return data[_HEAD:end], data[end:]


codec: Any = Codec()


def loads(stored: bytes | str) -> Any:
    """`json.loads` that decrypts: for what tests read with psycopg."""
    value = json.loads(stored)
    if not (
        isinstance(value, dict) and value.get("key") == codec.key_id and value.keys() >= {"zart", "data"}
    ):
        return value
    return json.loads(codec.read(base64.b64decode(value["data"])))
