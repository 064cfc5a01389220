"""Stops an embedded server after its last user: one small process beside each process that asked for the server.

Run as a script, by path and without the rest of zart: `python caretaker.py DIRECTORY USERS_FD`, stdin a pipe from the
process that it stands for. Model:

- Each caretaker holds a shared lock on the file `users`, through the descriptor that it was started with.
- The pipe ends when the process behind it is done with the server or dead, however it died. Then the caretaker takes
  the lock `starting` (nobody begins to use the server meanwhile), lets go of its share of `users` and tries to have
  that file alone. Who gets it was the last, and stops the server, unless the file `keep` says that it shall stay.

It has a session of its own, so that Ctrl-C in a terminal reaches neither it nor the server.
"""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

STOP_WITHIN_SECONDS = 60.0


def read_pid_file(data: Path) -> list[str]:
    """Lines of `postmaster.pid`: pid, data, start, port, socket directory, address, memory, status; [] without one."""
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def stop_server(data: Path) -> bool:
    """Ask for a fast shutdown and wait for it; False if the server still runs after a minute."""
    lines = read_pid_file(data)
    if not lines:
        return True
    deadline = time.monotonic() + STOP_WITHIN_SECONDS
    try:
        os.kill(int(lines[0]), signal.SIGINT)
    except ProcessLookupError:
        return True  # the file is what a killed server left behind
    # The server removes the file as its last act. Its process may stay as a zombie where nobody reaps.
    while read_pid_file(data)[:1] == lines[:1]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def forget_unreaped_server(data: Path) -> None:
    """Remove the lock files of a server that was killed and whose process no parent has reaped.

    PostgreSQL would take such a process for a living server, in a container without an init process for ever.
    """
    lines = read_pid_file(data)
    try:
        state = Path(f"/proc/{int(lines[0])}/stat").read_text().rpartition(")")[2].split()[0]
    except (IndexError, ValueError, OSError):  # no file, half a file, no such process, or no /proc
        return
    if state == "Z":
        if len(lines) > 4:
            (Path(lines[4]) / f".s.PGSQL.{lines[3]}.lock").unlink(missing_ok=True)
        (data / "postmaster.pid").unlink(missing_ok=True)


def main(directory: Path, users: int) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    with (directory / "starting").open("a") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        os.close(users)
        with (directory / "users").open("a") as everybody:
            try:
                fcntl.flock(everybody, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # someone still uses the server, and has a caretaker too
            if not (directory / "keep").exists():
                stop_server(directory / "data")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
