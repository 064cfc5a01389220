"""Encryption with keys of the user's own: AES-256-GCM with a fresh random nonce for each value.

What `encode` returns is

    1 byte        the length of the key's id
    the key's id
    16 bytes      a salt
    12 bytes      the nonce
    the rest      the ciphertext and its tag of 16 bytes

AES-GCM with random nonces of 96 bits is safe for 2^32 messages under one key (NIST SP 800-38D, 8.3), which a busy
database writes within a day. So nothing is encrypted with the user's key itself. Each process draws a salt, and derives
a key from both (HKDF with SHA-256, RFC 5869) under which it encrypts the next MOST_VALUES values; then it draws
another one. That leaves room for processes that were forked and share a salt. Who reads finds the salt with the value,
and remembers what it has derived.

The first key writes; all of them read. So a key is rotated by adding the new one behind the old one everywhere, then
by putting it first.
"""

import base64
import binascii
import itertools
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from zart.distribution import install_hint
from zart.errors import PayloadUnreadable, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
MOST_VALUES: Final = 1 << 24
"""Under one derived key, of one process."""

_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_PURPOSE: Final = b"zart payload 1"
_REMEMBERED: Final = 4096
"""Derived keys: one for each process that has written lately."""
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HOW_TO_MAKE: Final = "make one with: openssl rand -base64 32"


class PayloadKeys:
    """Encrypts payloads: `PayloadKeys({"k2": key, "k1": old_key})`.

    Keys are 32 random bytes each, by their ids. The first one writes, the others still read. Raises UsageError for what
    is no id or no key, and when the package `cryptography` is not installed.
    """

    def __init__(self, keys: Mapping[str, bytes], /) -> None:
        try:
            from cryptography.exceptions import InvalidTag  # noqa: PLC0415 (an optional dependency)
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415
            from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415
        except ImportError as error:
            raise UsageError(
                f"payloads are encrypted with the package cryptography, which is not installed: "
                f"{install_hint('crypto')}"
            ) from error
        if not keys:
            raise UsageError("no key is given to encrypt payloads with: give one at least")
        for key_id, key in keys.items():
            _check(key_id, key)
        known = dict(keys)

        def derived(key_id: str, salt: bytes) -> AESGCM:
            derivation = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=_PURPOSE)
            return AESGCM(derivation.derive(known[key_id]))

        self._derived = lru_cache(maxsize=_REMEMBERED)(derived)
        self._ids = tuple(known)
        self._invalid: type[Exception] = InvalidTag
        self._writing = self._begin()

    def _begin(self) -> "_Writing":
        """Draw a salt for the values to come."""
        salt = os.urandom(_SALT_BYTES)
        header = bytes((len(self.key_id),)) + self.key_id.encode() + salt
        return _Writing(header, self._derived(self.key_id, salt), itertools.count(1))

    @property
    def key_id(self) -> str:
        """The id of the key that it writes with."""
        return self._ids[0]

    def encode(self, plain: bytes, associated: bytes, /) -> bytes:
        """Encrypt `plain` for the place that `associated` names."""
        writing = self._writing
        if next(writing.values) > MOST_VALUES:
            writing = self._writing = self._begin()
            next(writing.values)
        nonce = os.urandom(_NONCE_BYTES)
        return writing.header + nonce + writing.cipher.encrypt(nonce, plain, associated)

    def decode(self, data: bytes, associated: bytes, /) -> bytes:
        """Decrypt what `encode` returned for this place. Raises PayloadUnreadable."""
        end = 1 + data[0] if data else 0
        if len(data) < end + _SALT_BYTES + _NONCE_BYTES + _TAG_BYTES:
            raise PayloadUnreadable("it is cut off")
        key_id = data[1:end].decode(errors="replace")
        if key_id not in self._ids:
            raise PayloadUnreadable(
                f"it is encrypted with the key {key_id!r}, which is not among the keys here "
                f"({', '.join(self._ids)}): add its line to them, below the first",
                key=key_id,
            )
        salted = end + _SALT_BYTES
        begin = salted + _NONCE_BYTES
        try:
            return self._derived(key_id, data[end:salted]).decrypt(
                data[salted:begin], data[begin:], associated
            )
        except self._invalid:
            raise PayloadUnreadable(
                f"it does not decrypt with the key {key_id!r}: it was changed, or belongs into another row, or another "
                "key has this id here. Correct the row or the key",
                key=key_id,
            ) from None

    def __repr__(self) -> str:
        return f"<payload keys {', '.join(self._ids)}>"


class _Writing(NamedTuple):
    """What values are encrypted with until there are too many of them."""

    header: bytes
    cipher: "AESGCM"
    values: "itertools.count[int]"


def read_keys(text: str, what: str) -> PayloadKeys:
    """The keys of a file or variable, called `what` in errors: one "id key" per line or between commas, key in base64.

    Empty lines and what follows a # are left out. Raises UsageError, which never shows a key.
    """
    keys: dict[str, bytes] = {}
    lines = (line.partition("#")[0].split() for line in re.split(r"[\n,]", text))
    for number, parts in enumerate(lines, start=1):
        if not parts:
            continue
        if len(parts) != 2:
            raise UsageError(f"{what}, line {number}: give the key's id, a space, and the key in base64")
        key_id, encoded = parts
        if key_id in keys:
            raise UsageError(f"{what}, line {number}: the key id {_shown(key_id)} is there twice")
        try:
            keys[key_id] = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise UsageError(
                f"{what}, line {number}: the key {_shown(key_id)} is no base64; {_HOW_TO_MAKE}"
            ) from None
    if not keys:
        raise UsageError(
            f"{what} holds no key: give one line with the key's id, a space, and the key in base64"
        )
    return PayloadKeys(keys)


def _check(key_id: object, key: object) -> None:
    if not isinstance(key_id, str) or not _ID.fullmatch(key_id):
        raise UsageError(
            f"the key {_shown(key_id)} cannot be called so: an id has 1 to 64 letters, digits and the signs . _ -"
        )
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        told = f"{len(key)} bytes long" if isinstance(key, bytes) else f"a {type(key).__name__}"
        raise UsageError(
            f"the key {_shown(key_id)} is {told}, but it must be {KEY_BYTES} bytes; {_HOW_TO_MAKE}"
        )


def _shown(key_id: object) -> str:
    """An id, unless it might be a key in the wrong place."""
    return repr(key_id) if isinstance(key_id, str) and len(key_id) <= 20 else "whose id is not shown here"
