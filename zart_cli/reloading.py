"""`zart dev --reload`: runs the worker in a process of its own and starts it anew when a .py file changes.

Files are looked at by their times, twice a second: it needs no library and works on every file system, network drives
and containers included. A worker that ended by itself, by an import that failed say, waits for the next change.
"""

import os
import signal
import threading
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import click

from zart_cli.children import start_child

_LOOK_EVERY_SECONDS: Final = 0.5
_SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})


def run_reloading(target: Callable[..., None], arguments: tuple[Any, ...], directory: Path) -> None:
    """Run `target(*arguments)` in a new process until SIGINT or SIGTERM, anew after each change below `directory`."""
    told = threading.Event()
    process: BaseProcess | None = None

    def stop(number: int, frame: object) -> None:  # noqa: ARG001 (signal's signature)
        if told.is_set() and process is not None:
            process.terminate()  # it sees a second signal, and does not wait any longer
        told.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not told.is_set():
            times = modification_times(directory)
            process = start_child(target, arguments, "zart worker")
            changed = _watch(directory, times, process, told)
            _stop(process)
            process = None
            if changed:
                click.echo(f"{', '.join(changed)} changed: starting anew", err=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def modification_times(directory: Path) -> dict[Path, int]:
    """The .py files below `directory` with their times in nanoseconds, without hidden directories and environments."""
    times: dict[Path, int] = {}
    for place, directories, files in os.walk(directory):
        directories[:] = [
            name
            for name in directories
            if name not in _SKIPPED
            and not name.startswith(".")
            and not Path(place, name, "pyvenv.cfg").exists()
        ]
        for name in files:
            if name.endswith(".py"):
                try:
                    times[Path(place, name)] = Path(place, name).stat().st_mtime_ns
                except FileNotFoundError:  # gone in the meantime
                    continue
    return times


def _watch(
    directory: Path, times: Mapping[Path, int], process: BaseProcess, told: threading.Event
) -> list[str]:
    """The names of the files that changed; empty when it is time to end."""
    ended = False
    while not told.wait(_LOOK_EVERY_SECONDS):
        now = modification_times(directory)
        changed = sorted(path for path in {*now, *times} if now.get(path) != times.get(path))
        if changed:
            return [str(path.relative_to(directory)) for path in changed]
        if not ended and not process.is_alive():
            ended = True
            click.echo("the worker has ended; it starts anew when a .py file changes", err=True)
    return []


def _stop(process: BaseProcess) -> None:
    if process.is_alive():
        process.terminate()  # SIGTERM: it stops as `zart worker` does, within its own shutdown timeout
    process.join()
