"""Ends of processes that are not ours: whether one still runs, and a database server that is made to crash."""

import os
import signal
import time
from pathlib import Path

from zart._postgres import embedded
from zart._postgres.caretaker import read_pid_file

_STOPS_WITHIN = 20.0


def process_state(pid: int) -> str:
    """The state of a process as the kernel tells it, in one letter; nothing when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(pid: int) -> bool:
    """Whether this process runs; a dead one that nobody has reaped does not."""
    if Path("/proc/self/stat").exists():
        return process_state(pid) not in ("", "Z")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def crash_server(directory: Path) -> None:
    """As at a power cut: no connection of the embedded server there is served any longer, nothing is flushed."""
    pid = int(read_pid_file(directory / "data")[0])
    os.kill(pid, signal.SIGQUIT)
    deadline = time.monotonic() + _STOPS_WITHIN
    while embedded.running(directory) is not None or alive(pid):
        assert time.monotonic() < deadline, "the server does not stop"
        time.sleep(0.01)
