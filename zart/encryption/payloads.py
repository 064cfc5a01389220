"""What all of Zart encrypts and decrypts stored values with, and the protocol for a codec of one's own."""

from typing import Final, Protocol

from zart.digest import ENCRYPTED
from zart.encryption import envelope
from zart.encryption.places import Place
from zart.errors import PayloadUnreadable, SerializationError

_ENCRYPTED: Final = bytes((ENCRYPTED,))


class PayloadCodec(Protocol):
    """Encrypts what is stored. `PayloadKeys` is one; ZART_PAYLOAD_CODEC names one of your own, such as a KMS's.

    Both methods are called on the event loop, for every value: they must be quick, and wait for nobody. A codec whose
    keys are elsewhere gets them before it is first used, and keeps them. Threads may call at the same time. An
    attribute `key_id`, if there is one, is shown where an encrypted value cannot be read.
    """

    def encode(self, plain: bytes, associated: bytes, /) -> bytes:
        """Encrypt; `associated` names the place of the value, to which the result is to be bound. What is raised is
        taken for a passing trouble: a worker tries again, as it does when the database is away.
        """
        ...

    def decode(self, data: bytes, associated: bytes, /) -> bytes:
        """Decrypt what `encode` returned for the same `associated`. Raises when that is not possible; an OSError is
        passing trouble, and tried again.
        """
        ...


class Payloads:
    """Encrypts with a codec, and decrypts. Without one everything is stored as it is, and what is encrypted refused."""

    __slots__ = ("codec", "key_id")

    def __init__(self, codec: PayloadCodec | None = None) -> None:
        self.codec: PayloadCodec | None = codec
        self.key_id: str = str(getattr(codec, "key_id", ""))
        """Of the key that it writes with, where the codec says so."""

    def encrypt(self, data: bytes, place: Place) -> bytes:
        """What a column of JSON or text gets for `data`."""
        return data if self.codec is None else envelope.write(self._encode(data, place), self.key_id)

    def encrypt_input(self, data: bytes, place: Place) -> bytes:
        """The same for the input of a scheduled step."""
        if self.codec is None:
            return data
        return envelope.write_input(self._encode(data, place), self.key_id, data)

    def encrypt_digest(self, digest: bytes, place: Place) -> bytes:
        """What a column gets for a digest: another number in front, and no two of them alike."""
        return digest if self.codec is None else _ENCRYPTED + self._encode(digest, place)

    def decrypt(self, stored: str, place: Place) -> str:
        """What was encrypted; anything else is returned as it is. Raises PayloadUnreadable."""
        if not envelope.is_envelope(stored):
            return stored
        try:
            read = envelope.read(stored)
            return self._decode(read.data, place, read.key).decode()
        except PayloadUnreadable:
            raise
        except ValueError as error:  # a damaged envelope; or what a codec gives is no text
            raise PayloadUnreadable(f"{place} cannot be read: {error}") from error

    def decrypt_digest(self, stored: bytes, place: Place) -> bytes:
        """The same for a digest."""
        return self._decode(stored[1:], place, "") if is_encrypted_digest(stored) else stored

    def _encode(self, data: bytes, place: Place) -> bytes:
        assert self.codec is not None  # noqa: S101 (the caller has looked)
        try:
            return bytes(memoryview(self.codec.encode(data, place.associated())))
        except Exception as error:
            raise SerializationError(
                f"{place} cannot be encrypted: {type(error).__name__}: {error}", what=str(place)
            ) from error

    def _decode(self, data: bytes, place: Place, key: str) -> bytes:
        if self.codec is None:
            told = f" with the key {key!r}" if key else ""
            raise PayloadUnreadable(
                f"{place} is encrypted{told}, and no keys are set here: set ZART_PAYLOAD_KEYS_FILE (or "
                "ZART_PAYLOAD_KEYS, or ZART_PAYLOAD_CODEC) as it is where that was stored",
                key=key or None,
            )
        try:
            return self.codec.decode(data, place.associated())
        except PayloadUnreadable as error:
            raise PayloadUnreadable(
                f"{place} cannot be read: {error}", key=error.key or key or None
            ) from error
        except Exception as error:
            raise PayloadUnreadable(
                f"{place} cannot be read: the codec refuses it: {type(error).__name__}: {error}",
                key=key or None,
                passing=isinstance(error, OSError),
            ) from error


def is_encrypted_digest(stored: bytes | None) -> bool:
    return stored is not None and stored[:1] == _ENCRYPTED


PLAIN: Final = Payloads()
"""Where nothing is encrypted."""
