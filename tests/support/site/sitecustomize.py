# ruff: noqa: INP001 (no package: the directory itself is on the path)
"""Python imports this module at its start where this directory is on PYTHONPATH: processes that tests start in a mode.

Nothing happens until `zart.worker` is imported, and nothing at all in processes that never do. In the mode `encrypted`
they need no more than the codec that stands here.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ROOT = str(Path(__file__).resolve().parents[3])


class _AfterTheWorker(importlib.abc.MetaPathFinder):
    """Has the mode entered when the worker's module has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "zart.worker":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        loader = spec.loader if spec is not None else None
        if isinstance(loader, importlib.machinery.SourceFileLoader):
            execute = loader.exec_module

            def execute_and_enter(module: ModuleType) -> None:
                execute(module)
                _enter()

            loader.exec_module = execute_and_enter
        return spec


def _enter() -> None:
    if ROOT not in sys.path:
        sys.path.append(ROOT)
    from tests.support import modes

    modes.enter(os.environ["ZART_TEST_MODE"])


if os.environ.get("ZART_TEST_MODE", "encrypted") not in ("", "encrypted"):
    sys.meta_path.insert(0, _AfterTheWorker())
