"""The order of the house: imports point one way, and every module has its place."""

import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_imports_point_one_way() -> None:
    """The contracts in pyproject.toml hold; a module that they do not name breaks them."""
    program = Path(sysconfig.get_path("scripts")) / "lint-imports"
    told = subprocess.run(
        [str(program), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr
