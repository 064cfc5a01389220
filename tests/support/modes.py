"""Ways to run the whole suite in which everything must hold as well: `ZART_TEST_MODE=suspending pytest`.

    suspending   each committed record, instead of being delivered, unwinds the body, and the next activation replays
    twice        a body that has come to its end is given back and replayed in whole from what the database holds of
                 it; that replay must make the same calls in each branch and come to the same end
    unparked     no body that waits is kept in memory: each goes on by a replay (`max_parked_bodies=0`)
    unprepared   no prepared statements (`ZART_PREPARED=off`)
    pgbouncer    every connection of tests and workers leads through PgBouncer in transaction mode (`pooler.py`)
    encrypted    payloads are encrypted wherever a test does not say otherwise, and none may stand in plain at the end
                 of a test (`plain.py`)

Worker processes join in: `site/sitecustomize.py` is on their path, and calls `enter` when Zart's worker is imported.
(So nothing of Zart is imported here before that.)
A test that cannot hold in a mode says why: `@pytest.mark.not_in("pgbouncer", reason=...)`.
"""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg

VARIABLE = "ZART_TEST_MODE"
DIFFERENCES = "ZART_TEST_DIFFERENCES"
"""Where the mode `twice` writes what differed."""
MODES = ("suspending", "twice", "unparked", "unprepared", "pgbouncer", "encrypted")
_WITHOUT_PREPARED = ("unprepared", "pgbouncer")
SITE = Path(__file__).parent / "site"


def current() -> str | None:
    """The mode of this process; None for the ordinary one."""
    mode = os.environ.get(VARIABLE) or None
    if mode is not None and mode not in MODES:
        raise ValueError(f"{VARIABLE} is {mode!r}: use one of {', '.join(MODES)}")
    return mode


def prepare_children(mode: str) -> None:
    """Set what this process and those that tests start read from the environment."""
    if mode in _IN_WORKERS or mode == "encrypted":
        paths = [str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    if mode == "unprepared":
        os.environ["ZART_PREPARED"] = "off"
    if mode == "encrypted":
        os.environ["ZART_PAYLOAD_CODEC"] = "suite_codec:codec"


def enter(mode: str) -> None:
    """Change the workers of this process, or the connections that its tests make themselves."""
    if mode in _WITHOUT_PREPARED:
        for connection in (psycopg.Connection, psycopg.AsyncConnection):
            connection.connect.__func__.__kwdefaults__["prepare_threshold"] = None  # type: ignore[attr-defined]
    elif mode == "encrypted":
        _read_encrypted()
    elif mode in _IN_WORKERS:
        _IN_WORKERS[mode]()


def prepare_after() -> int | None:
    """The `prepare_threshold` of connections that tests make for the engine: its own, or none in this mode."""
    from zart._postgres.connections import PREPARE_AFTER

    return None if current() in _WITHOUT_PREPARED else PREPARE_AFTER


def _read_encrypted() -> None:
    """JSON that a test reads with psycopg is decrypted. Zart reads text, so none of this reaches it."""
    from psycopg.types.json import set_json_loads

    if str(SITE) not in sys.path:
        sys.path.append(str(SITE))
    set_json_loads(importlib.import_module("suite_codec").loads)


def _always_suspend() -> None:
    from zart.worker import Worker

    Worker._always_suspend = True


def _keep_none() -> None:
    from zart.worker import Worker

    Worker._keeps_bodies = False


def _replay_twice() -> None:
    from tests.support import twice

    twice.install()


_IN_WORKERS: dict[str, Callable[[], None]] = {
    "suspending": _always_suspend,
    "twice": _replay_twice,
    "unparked": _keep_none,
}
