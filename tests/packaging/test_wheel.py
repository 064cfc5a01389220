"""The wheel and the source archive hold what the repository holds, and nothing that it ignores."""

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a freshly built wheel and source archive; nothing is downloaded for it."""
    directory = tmp_path_factory.mktemp("dist")
    told = subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--no-isolation",
            "--sdist",
            "--wheel",
            "--outdir",
            str(directory),
            str(ROOT),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return directory


@pytest.fixture
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture
def sdist(built: Path) -> list[str]:
    """The names in the source archive, without its top folder."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return [name.partition("/")[2] for name in archive.getnames()]


def test_wheel_ships_the_migrations_as_they_are(wheel: zipfile.ZipFile) -> None:
    """Every migration of the folder is in the wheel, byte for byte, and no other."""
    folder = {path.name: path.read_bytes() for path in (ROOT / "migrations").glob("*.sql")}
    packed = {
        name.removeprefix("zart/migrations/"): wheel.read(name)
        for name in wheel.namelist()
        if name.startswith("zart/migrations/")
    }
    assert folder
    assert packed == folder


def test_wheel_ships_every_module_and_query(wheel: zipfile.ZipFile) -> None:
    """All .py and .sql files and the typing markers of both packages are in the wheel."""
    wanted = {
        str(path.relative_to(ROOT))
        for package in ("zart", "zart_cli")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".sql", ".typed") and "__pycache__" not in path.parts
    }
    assert any(name.endswith(".sql") for name in wanted)
    packed = {name for name in wheel.namelist() if not name.startswith("zart/migrations/")}
    assert wanted <= packed
    assert not {name for name in packed - wanted if ".dist-info/" not in name}


def test_wheel_brings_the_command_and_its_licence(wheel: zipfile.ZipFile) -> None:
    """Installing it puts `zart` on the path; the distribution is not called `zart`."""
    (entry_points,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    parser = ConfigParser()
    parser.read_string(wheel.read(entry_points).decode())
    assert dict(parser["console_scripts"]) == {"zart": "zart_cli.main:cli"}
    assert entry_points.startswith("zart_durable-")
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_source_archive_can_make_the_same_wheel(sdist: list[str]) -> None:
    """The source archive holds both packages, the migrations, the project file and the licence."""
    wanted = {"pyproject.toml", "LICENSE", "zart/__init__.py", "zart/py.typed", "zart_cli/main.py"}
    wanted |= {f"migrations/{path.name}" for path in (ROOT / "migrations").glob("*.sql")}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "zart").rglob("*.sql")}
    assert wanted <= set(sdist)
    assert not [name for name in sdist if "__pycache__" in name or name.startswith(("tests/", "examples/"))]
