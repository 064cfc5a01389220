"""Keys for tests of encryption, and the settings that name them."""

import base64
import hashlib

import pytest

VARIABLES = ("ZART_PAYLOAD_KEYS_FILE", "ZART_PAYLOAD_KEYS", "ZART_PAYLOAD_CODEC")


def key(id: str) -> bytes:
    """The key of this id: the same in every process."""
    return hashlib.sha256(f"a key for tests: {id}".encode()).digest()


def keys(*ids: str) -> str:
    """What ZART_PAYLOAD_KEYS says: the first one writes."""
    return "\n".join(f"{id} {base64.b64encode(key(id)).decode()}" for id in ids)


def use_keys(monkeypatch: pytest.MonkeyPatch, *ids: str) -> None:
    """Clients and workers that are opened from now on have these keys; none: they encrypt nothing."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    if ids:
        monkeypatch.setenv("ZART_PAYLOAD_KEYS", keys(*ids))
