"""Which keys, or which codec, this process encrypts payloads with: client, worker and command line ask here.

    ZART_PAYLOAD_KEYS_FILE    a file with one "id key" per line; the first one writes, all of them read
    ZART_PAYLOAD_KEYS         the same text itself, its lines between commas if you like
    ZART_PAYLOAD_CODEC        module:attribute, a codec of one's own

They are read once in a process: keys are changed by a restart. The module in ZART_PAYLOAD_CODEC is imported since the
operator has named it; no name that a row holds is ever imported.
"""

import functools
import importlib
import os
import stat
import sys
from pathlib import Path
from typing import Any, Final, cast

from zart.encryption.keys import PayloadKeys, read_keys
from zart.encryption.payloads import PLAIN, PayloadCodec, Payloads
from zart.errors import UsageError

KEYS_FILE_VARIABLE: Final = "ZART_PAYLOAD_KEYS_FILE"
KEYS_VARIABLE: Final = "ZART_PAYLOAD_KEYS"
CODEC_VARIABLE: Final = "ZART_PAYLOAD_CODEC"


def configured() -> Payloads:
    """What the environment says. Raises UsageError when that cannot be used."""
    variables = (KEYS_FILE_VARIABLE, KEYS_VARIABLE, CODEC_VARIABLE)
    return _read(*(os.environ.get(variable) or None for variable in variables))


@functools.lru_cache(maxsize=8)
def _read(keys_file: str | None, keys: str | None, codec: str | None) -> Payloads:
    named = (
        (KEYS_FILE_VARIABLE, keys_file),
        (KEYS_VARIABLE, keys),
        (CODEC_VARIABLE, codec),
    )
    given = [variable for variable, value in named if value is not None]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)} are set: payloads are encrypted in one way, so set one of them"
        )
    if keys_file is not None:
        return Payloads(_read_file(Path(keys_file)))
    if keys is not None:
        return Payloads(read_keys(keys, KEYS_VARIABLE))
    if codec is not None:
        return Payloads(_find(codec))
    return PLAIN


def _read_file(path: Path) -> PayloadKeys:
    what = f"{KEYS_FILE_VARIABLE} ({path})"
    try:
        # Of the file that is opened, not of whatever stands at its path a moment later.
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if os.name == "posix" and mode & (stat.S_IRWXO | stat.S_IWGRP):
                raise UsageError(
                    f"{what} can be read or changed by others ({stat.filemode(mode)}): chmod 600 (or 640) it, and "
                    "rotate the keys if they may have been read"
                )
            text = file.read()
    except OSError as error:
        raise UsageError(f"{what} cannot be read: {error.strerror}") from error
    except UnicodeError:
        raise UsageError(f"{what} cannot be read: it is no text in UTF-8") from None
    return read_keys(text, what)


def _find(named: str) -> PayloadCodec:
    module, colon, attribute = named.partition(":")
    if not (colon and module and attribute):
        raise UsageError(
            f"{CODEC_VARIABLE} is {named!r}, but it must be module:attribute, such as myapp.kms:codec"
        )
    directory = str(Path.cwd())  # as --app has it
    if directory not in sys.path:
        sys.path.append(directory)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{CODEC_VARIABLE} is {named!r}, which cannot be imported: {error}") from error
    if isinstance(found, type) or not all(
        callable(getattr(found, method, None)) for method in ("encode", "decode")
    ):
        raise UsageError(
            f"{CODEC_VARIABLE} is {named!r}, which is no codec: it must be an object with encode(plain, associated) "
            "and decode(data, associated), see zart.PayloadCodec"
        )
    return cast("PayloadCodec", found)
