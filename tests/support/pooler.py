"""PgBouncer in front of a server, in transaction mode: each transaction may run in another session.

`ZART_TEST_PGBOUNCER` names the program where it is not on the path. The pool is small, so that sessions do change
hands; a test that holds more transactions open than that goes past it (`Databases.direct`).
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import conninfo

from zart._postgres.server_binaries import server_user

POOL_SIZE = 8
_STARTS_WITHIN = 10.0
_PORT = "6432"

SETTINGS = {
    "listen_port": _PORT,  # of the socket's name: there is no TCP port
    "pool_mode": "transaction",
    "default_pool_size": str(POOL_SIZE),
    "max_client_conn": "2000",
    "auth_type": "any",  # sockets in a directory of ours
    "server_login_retry": "1",
    "query_wait_timeout": "20",
}


def find_pgbouncer() -> str | None:
    """The program, or None where it is not installed."""
    given = os.environ.get("ZART_TEST_PGBOUNCER")
    return given or shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def pgbouncer(dsn: str, **settings: str) -> Iterator[str]:
    """The DSN of a PgBouncer before the server of `dsn`, with all of its databases; `settings` are PgBouncer's."""
    program = find_pgbouncer()
    if program is None:
        raise RuntimeError(
            "PgBouncer is not installed: apt-get install pgbouncer, or set ZART_TEST_PGBOUNCER"
        )
    target = conninfo.conninfo_to_dict(dsn)
    directory = Path(tempfile.mkdtemp(prefix="zart-pgbouncer-"))
    user = server_user(directory / "none")
    try:
        _configure(directory, target, {**SETTINGS, **settings})
        if user is not None:
            os.chown(directory, user.pw_uid, user.pw_gid)
        process = _start(program, directory, user)
        try:
            address = {
                "user": target.get("user"),
                "dbname": target.get("dbname"),
                "host": str(directory),
                "port": _PORT,
            }
            address = {name: value for name, value in address.items() if value}
            _wait(conninfo.make_conninfo("", **address), process, directory)
            yield _in_the_form_of(dsn, address)
        finally:
            process.terminate()
            process.wait(10)
    finally:
        shutil.rmtree(directory)


def _configure(directory: Path, target: dict[str, object], settings: dict[str, str]) -> None:
    server = " ".join(
        f"{name}={_quoted(str(target[name]))}"
        for name in ("host", "port", "user", "password")
        if target.get(name) is not None
    )
    lines = ["[databases]", f"* = {server}", "[pgbouncer]", f"unix_socket_dir = {directory}"]
    lines += [f"logfile = {directory / 'log'}", *(f"{name} = {value}" for name, value in settings.items())]
    (directory / "pgbouncer.ini").write_text("\n".join(lines) + "\n")


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _start(program: str, directory: Path, user: pwd.struct_passwd | None) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [program, str(directory / "pgbouncer.ini")],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user=None if user is None else user.pw_uid,
        group=None if user is None else user.pw_gid,
        extra_groups=None if user is None else [],
    )


def _wait(address: str, process: "subprocess.Popen[bytes]", directory: Path) -> None:
    deadline = time.monotonic() + _STARTS_WITHIN
    while True:
        try:
            psycopg.connect(address).close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                log = directory / "log"
                said = log.read_text() if log.exists() else "nothing"
                raise RuntimeError(f"PgBouncer does not answer ({error}); it says {said}") from None
            time.sleep(0.02)


def _in_the_form_of(dsn: str, address: dict[str, object]) -> str:
    """A URL if `dsn` is one: tests take addresses apart."""
    if "://" not in dsn:
        return conninfo.make_conninfo("", **address)
    user = f"{address['user']}@" if "user" in address else ""
    return f"postgresql://{user}/{address.get('dbname', '')}?host={address['host']}&port={address['port']}"
