"""Who may call: tokens, what each of them may do, and the file that lists them.

    # name     scopes                token
    billing    read,write            f0a4c7…
    dashboard  read                  91bd20…
    ann        read,write,payloads   7c55e1…

One token a line: a name, which goes into the history as the author of what its bearer does; scopes with commas; the
token. A name may stand on two lines, while one token takes the place of another. In memory there are only their
digests. The file belongs to the user that the service runs as, or to root, and nobody else can read it.
"""

import hashlib
import hmac
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, cast, get_args

import msgspec

from zart.errors import UsageError
from zart.names import check_name

_log = logging.getLogger("zart.http")

VARIABLE: Final = "ZART_HTTP_TOKEN"
"""A single token with every scope, for a service with one caller."""
_NAME_OF_VARIABLE: Final = "http"
Scope = Literal["read", "write", "payloads"]
SCOPES: Final[frozenset[Scope]] = frozenset(cast("tuple[Scope, ...]", get_args(Scope)))
_SHORT: Final = 16
"""Signs; what is shorter could be guessed, and is warned of."""
_LONGEST_FILE: Final = 1 << 20
_LOOKS_EVERY: Final = 1.0
"""Seconds between two looks at whether the file has changed."""
_FORM: Final = "a line is `name scopes token`, such as `billing read,write f0a4c7...`"


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a token: not the token itself."""

    name: str
    scopes: frozenset[Scope]
    digest: bytes


class Tokens:
    """All tokens of a service, read again when their file has changed."""

    def __init__(self, tokens: Sequence[Token], file: "TokenFile | None" = None) -> None:
        self._tokens = tuple(tokens)
        self._file = file

    def find(self, presented: bytes) -> Token | None:
        """The token that was presented. It takes the same time whichever it is, and whether it is one at all."""
        if self._file is not None:
            self._tokens = tuple(self._file.changed() or self._tokens)
        digest = _digest(presented)
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found


def load_tokens(token_file: str | os.PathLike[str] | None) -> Tokens | None:
    """The tokens of `token_file`, else the one in `ZART_HTTP_TOKEN`, else None: there are none.

    Raises UsageError for a file that cannot be used, and for a variable that is set to nothing. No text shows a token.
    """
    if token_file is not None:
        file = TokenFile(Path(token_file))
        return Tokens(file.read(), file)
    value = os.environ.get(VARIABLE)
    if value is None:
        return None
    token = value.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"{VARIABLE} is set, but holds no token: one word of ASCII, such as 32 random bytes in hex"
        )
    _warn_if_short(token, VARIABLE)
    return Tokens([Token(name=_NAME_OF_VARIABLE, scopes=SCOPES, digest=_digest(token.encode()))])


class TokenFile:
    """A file of tokens, and how it was when it was read."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._state: tuple[int, ...] | None = None
        self._next_look = 0.0

    def read(self) -> list[Token]:
        """All tokens in it. Raises UsageError, which names the file and the line."""
        self._next_look = self._clock() + _LOOKS_EVERY
        try:
            descriptor = os.open(self._path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise UsageError(f"token file {self._path} cannot be read: {error.strerror}") from error
        try:
            status = os.fstat(descriptor)
            self._state = _state(status)
            _check_access(status, self._path)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(_LONGEST_FILE + 1)
        finally:
            os.close(descriptor)
        if len(data) > _LONGEST_FILE:
            raise UsageError(
                f"token file {self._path} is over {_LONGEST_FILE:,} bytes long: that is no list of tokens"
            )
        return parse_tokens(data, str(self._path))

    def changed(self) -> list[Token] | None:
        """What it holds, if that is something else than when it was read last; one look a second.

        A file that cannot be used now is logged, once for each change, and leaves the tokens as they were.
        """
        now = self._clock()
        if now < self._next_look:
            return None
        self._next_look = now + _LOOKS_EVERY
        try:
            if _state(self._path.stat()) == self._state:
                return None
        except OSError as error:
            if self._state is not None:
                self._state = None
                _log.error(
                    "token file %s is gone (%s): its tokens stay as they were", self._path, error.strerror
                )
            return None
        try:
            tokens = self.read()
        except UsageError as error:
            _log.error("the tokens stay as they were: %s", error)
            return None
        _log.info("token file %s was read again: %d tokens", self._path, len(tokens))
        return tokens


def parse_tokens(data: bytes, where: str) -> list[Token]:
    """The tokens of a file's bytes. Raises UsageError with `where` and the line's number."""
    tokens: list[Token] = []
    seen: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        place = f"token file {where}, line {number}"
        stripped = line.strip()
        if not stripped or stripped.startswith(b"#"):
            continue
        token = _parse_line(stripped, place)
        if (first := seen.setdefault(token.digest, number)) != number:
            raise UsageError(f"{place} has the token of line {first} again: give each caller its own")
        tokens.append(token)
    if not tokens:
        raise UsageError(f"token file {where} holds no token: {_FORM}")
    return tokens


def _parse_line(line: bytes, place: str) -> Token:
    parts = line.split()
    if len(parts) != 3:
        raise UsageError(f"{place} has {len(parts)} parts, not 3: {_FORM}")
    name, scopes, secret = parts
    if not secret.isascii() or not secret.decode("ascii").isprintable():
        raise UsageError(f"{place}: a token is printable ASCII")
    _warn_if_short(secret.decode("ascii"), place)
    return Token(name=_read_name(name, place), scopes=_read_scopes(scopes, place), digest=_digest(secret))


def _read_name(name: bytes, place: str) -> str:
    try:
        return check_name(name.decode(), f"{place}: the name")
    except UnicodeDecodeError:
        raise UsageError(f"{place}: the name is no UTF-8") from None


def _read_scopes(scopes: bytes, place: str) -> frozenset[Scope]:
    named = scopes.split(b",")
    known: dict[bytes, Scope] = {scope.encode(): scope for scope in SCOPES}
    # What stands there may be the token, with the columns in another order: it is not shown.
    if not all(scope in known for scope in named):
        raise UsageError(
            f"{place}: the second part must be scopes with commas, of read, write and payloads: {_FORM}"
        )
    return frozenset(known[scope] for scope in named)


def _check_access(status: os.stat_result, path: Path) -> None:
    """Raise UsageError unless only this user, and root, can read it."""
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"token file {path} is no regular file")
    if os.name != "posix":
        return
    if status.st_uid not in (os.geteuid(), 0):
        raise UsageError(
            f"token file {path} belongs to another user (uid {status.st_uid}): chown it to this one"
        )
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise UsageError(f"token file {path} can be read by others (mode {mode:04o}): chmod 600 {path}")


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode, status.st_uid


def _warn_if_short(token: str, place: str) -> None:
    if len(token) < _SHORT:
        _log.warning("%s: the token has fewer than %d signs and could be guessed", place, _SHORT)


_KEY: Final = secrets.token_bytes(32)


def _digest(token: bytes) -> bytes:
    return hashlib.blake2b(token, key=_KEY).digest()
