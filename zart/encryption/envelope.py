"""How an encrypted value looks in a column of JSON or text, and why nothing else can look so.

     {"zart":1,"key":"k1","data":"c2VjcmV0IGJ5dGVz..."}

It is a JSON object, so columns stay what they are and views show it. `data` is what the codec returned, in base64;
`key` says which key that was, for people and for errors. With a scheduled step's input stands `then` beside it, the
place of the step that may begin after it: SQL follows that.

Values that nobody encrypted are read as they are: those of SQL functions, and those from before encryption was switched
on. What tells an envelope from them is its first byte, a space. JSON allows one there and means nothing by it, and a
column of type `json` keeps it; but neither way by which a value gets into a column ever begins with one. Zart writes
JSON without any space around values (`zart.codec` sees to it), and PostgreSQL writes a `jsonb` argument out in its own
notation. So whatever a user stores, it is never taken for an envelope, not even a value that looks exactly like one;
and an envelope that somebody copies by way of `jsonb`, which loses the space, is no envelope any more.
"""

from typing import Final

import msgspec

VERSION: Final = 1
PREFIX: Final = ' {"zart":'


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """See the module; msgspec writes `data` in base64."""

    zart: int = msgspec.field(default=0)
    key: str = ""
    data: bytes = b""
    then: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Successor(msgspec.Struct):
    then: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Envelope).decode
_successor = msgspec.json.Decoder(_Successor).decode


def is_envelope(stored: str | None) -> bool:
    """Whether what a column holds is encrypted."""
    return stored is not None and stored.startswith(PREFIX)


def write(data: bytes, key: str) -> bytes:
    """The envelope of encrypted bytes."""
    return b" " + _encode(Envelope(zart=VERSION, key=key, data=data))


def write_input(data: bytes, key: str, plain: bytes) -> bytes:
    """The same for the input of a scheduled step, `plain` before it was encrypted."""
    return b" " + _encode(Envelope(zart=VERSION, key=key, data=data, then=_successor(plain).then))


def read(stored: str) -> Envelope:
    """Raises ValueError for what is none that this version reads."""
    try:
        envelope = _decode(stored)
    except msgspec.MsgspecError as error:
        raise ValueError(f"its envelope is damaged: {error}") from error
    if envelope.zart != VERSION:
        raise ValueError(f"its envelope has version {envelope.zart}, and this library reads {VERSION}")
    return envelope
