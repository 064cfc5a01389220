"""What the documents say is so: their code runs, their links lead somewhere, their tables match the code."""

import ast
import inspect
import re
import shlex
from pathlib import Path

import pytest

from tests.support.documents import DOCUMENTS, ROOT, blocks, module_of, name, run
from tests.support.proofs import is_there
from zart.config import WorkerConfig
from zart.durations import format_duration
from zart.state import FINAL_STATUSES, TASK_TRANSITIONS, TRANSITIONS, ExecutionStatus
from zart_cli.main import cli

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name)


@every_document
async def test_code_marked_for_it_runs(document: Path) -> None:
    """Each block marked `python test` runs, and the tests in it pass."""
    with module_of(document) as module:
        for block in blocks(document):
            if block.mark == "python test":
                await run(block, module)


@every_document
def test_all_other_code_compiles(document: Path) -> None:
    """A block that is not run is at least Python, and its mark is one that we know."""
    for block in blocks(document):
        if block.mark.startswith("python"):
            assert block.mark in {"python", "python test", "python database"}
            compile(block.code, str(document), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@every_document
def test_links_lead_to_files(document: Path) -> None:
    """A relative link names a file or directory of the repository."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@every_document
def test_nobody_is_told_to_install_the_other_project(document: Path) -> None:
    """`zart` belongs to somebody else on the package index: the distribution is zart-durable."""
    assert not re.search(r"pip install ['\"]?zart(?!-durable)", document.read_text())


def drawn_transitions(number: int) -> set[tuple[str, str]]:
    """The arrows of one of the charts of the state machine."""
    document = ROOT / "docs/explanation/state-machine.md"
    charts = [block.code for block in blocks(document) if block.mark == "mermaid"]
    return set(re.findall(r"^ *(\S+) --> (\S+)$", charts[number], re.MULTILINE))


def test_the_chart_of_live_work_is_its_table() -> None:
    """The second picture shows the transitions of the row behind an execution; so does the table below it."""
    allowed = {(start, end) for start, ends in TASK_TRANSITIONS.items() for end in ends}
    assert drawn_transitions(1) == allowed
    text = (ROOT / "docs/explanation/state-machine.md").read_text().partition("What moves it on:")[2]
    rows = re.findall(r"^\| (`[^|]+) \| (`[^|]+) \|", text, re.MULTILINE)
    told = {(start, end) for starts, ends in rows for start in words(starts) for end in words(ends)}
    assert {(start, end) for start, end in told if start in TASK_TRANSITIONS} == allowed


def words(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_the_chart_is_the_table_of_transitions() -> None:
    """The state machine's picture shows exactly the transitions that the code allows."""
    drawn = drawn_transitions(0)
    allowed = {(start.value, end.value) for start, ends in TRANSITIONS.items() for end in ends}
    allowed |= {("[*]", ExecutionStatus.SCHEDULED.value)}
    allowed |= {(end.value, "[*]") for end in FINAL_STATUSES}
    assert drawn == allowed


def test_every_status_is_explained() -> None:
    """Each state has its line in the table."""
    text = (ROOT / "docs/explanation/state-machine.md").read_text()
    for status in ExecutionStatus:
        assert f"\n| `{status}` |" in text


def test_every_setting_of_a_worker_has_its_line_and_default() -> None:
    """The table of settings has each field of WorkerConfig, in order, with the default it has."""
    text = (ROOT / "docs/reference/configuration.md").read_text()
    section = text.partition("## Of a worker")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE)
    told = {field: default.strip("`").strip('"') for field, default in rows}
    told |= {"wedge_timeout": "None", "queues": "()", "retention": "None", "keep_ids": "None"}
    fields = inspect.signature(WorkerConfig).parameters
    assert list(told) == list(fields)
    assert told == {field: str(parameter.default) for field, parameter in fields.items()}


def test_ten_times_the_orphan_timeout() -> None:
    """The one default that depends on another one is what the table says."""
    config = WorkerConfig(orphan_timeout="7s", heartbeat_interval="1s")
    assert format_duration(config.wedge_timeout) == "1m10s"


def test_every_environment_variable_is_explained() -> None:
    """What the code reads from the environment has its line in the table."""
    text = (ROOT / "docs/reference/configuration.md").read_text()
    sources = [path for package in ("zart", "zart_cli") for path in (ROOT / package).rglob("*.py")]
    read = {
        name
        for path in sources
        for name in re.findall(r'"((?:ZART|DATABASE)_[A-Z]+(?:_[A-Z]+)*)"', path.read_text())
    }
    assert read
    assert {name for name in read if f"`{name}`" not in text} == set()


def shown_commands(document: Path) -> list[list[str]]:
    """The `zart …` lines of a document's shell blocks."""
    lines = [line for block in blocks(document) if block.mark == "sh" for line in block.code.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("zart ")]


@every_document
def test_shown_commands_are_accepted(document: Path) -> None:
    """Every `zart` command in a document has options and arguments that the command line knows."""
    for name_of_command, *arguments in shown_commands(document):
        cli.commands[name_of_command].make_context(name_of_command, arguments)


def test_the_command_reference_has_every_command() -> None:
    """The table of commands is the command line's own list."""
    text = (ROOT / "docs/reference/cli.md").read_text()
    table = text.partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `zart ([\w-]+)", table, re.MULTILINE)) == sorted(cli.commands)


def test_the_command_reference_has_no_invented_options() -> None:
    """Each option that the reference names belongs to some command, and those of a line to that line's command."""
    text = (ROOT / "docs/reference/cli.md").read_text()
    known = {
        name_of_command: {option for parameter in command.params for option in parameter.opts}
        for name_of_command, command in cli.commands.items()
    }
    for line in text.splitlines():
        of_command = re.match(r"\| `zart ([\w-]+)", line)
        accepted = known[of_command[1]] if of_command else set().union(*known.values(), {"--help"})
        assert set(re.findall(r"--[a-z][a-z-]+", line)) <= accepted, line


CHANGING = ROOT / "docs/how-to/change-running-code.md"
_TEST = re.compile(r"`(tests/[^`]+)`")


def claims() -> list[str]:
    """The rows of its tables and the items of its lists: each is a claim about what happens to running executions."""
    text = CHANGING.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| edit")]
    items = [item for item in re.split(r"\n(?=- |\n)", text) if item.startswith("- ")]
    return [*rows, *items]


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim[2:40])
def test_each_claim_about_changed_code_names_its_tests(claim: str) -> None:
    """Of docs/how-to/change-running-code.md; and the tests that it names are there."""
    named = _TEST.findall(claim)
    assert named
    assert [test for test in named if not is_there(test)] == []


def test_all_tests_that_the_page_on_changed_code_names_are_there() -> None:
    """In its running text, too."""
    named = _TEST.findall(CHANGING.read_text())
    assert len(named) > 25
    assert [test for test in named if not is_there(test)] == []
