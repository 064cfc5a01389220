"""Encryption at rest: what a user stores is encrypted before it leaves the process, and decrypted when it comes back.

    places      where a value stands; a ciphertext is bound to that, so that rows cannot be swapped
    keys        AES-256-GCM with keys of the user's own, which can be rotated
    envelope    how an encrypted value looks in a column of JSON or text
    payloads    the one object that all of Zart encrypts and decrypts with, and the protocol for a codec of one's own
    settings    which keys or which codec this process uses

Nothing here knows of tables or statements. The engine encrypts in `_engine/encrypting.py` and decrypts in
`_engine/decrypting.py`; the client encrypts in `client/starting.py` and `client/offering.py`, and decrypts in
`client/reading.py` and `client/handle.py`.
"""

from zart.encryption.keys import PayloadKeys
from zart.encryption.payloads import PLAIN, PayloadCodec, Payloads
from zart.encryption.places import Place
from zart.encryption.settings import configured

__all__ = ["PLAIN", "PayloadCodec", "PayloadKeys", "Payloads", "Place", "configured"]
