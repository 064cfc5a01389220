"""The command line, given anything: it ends with one of its exit codes and a line that says why, never a traceback."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.examples import examples
from tests.fuzz.stage import Stage
from tests.fuzz.strategies import SECRET, addresses, json_texts, texts
from zart_cli.main import cli

pytestmark = pytest.mark.filterwarnings(
    "ignore:Do not use the `random` module inside strategies"  # the worker beside the tests does
)

OPTIONS = {
    "start": ["--id", "--data", "--version", "--queue", "--priority", "--delay", "--schema"],
    "event": ["--data", "--dedup", "--schema"],
    "status": ["--schema", "--json"],
    "show": ["--run", "--schema", "--json"],
    "workers": ["--schema", "--json"],
    "top": ["--interval", "--schema", "--json"],
    "doctor": ["--old-after", "--app", "--schema", "--json"],
    "prune": ["--status", "--keep-ids", "--batch", "--dry-run", "--schema", "--json"],
    "wait": ["--timeout", "--schema"],
    "cancel": ["--reason", "--force", "--schema"],
    "resume": ["--reason", "--accept-arguments", "--schema"],
    "runs": ["--schema", "--json"],
    "retry-step": ["--reason", "--schema"],
    "restart": ["--data", "--reason", "--schema"],
    "rerun": ["--step", "--reason", "--schema", "--json"],
    "delete": ["--reason", "--schema"],
    "list": ["--status", "--name", "--id-prefix", "--limit", "--json", "--schema"],
    "stats": ["--json", "--schema"],
    "pauses": ["--json", "--schema"],
    "unpause": ["--reason", "--schema"],
    "migrate": ["--check", "--sql", "--schema"],
    "dsn": ["--json", "--reveal", "--schema"],
    "worker": ["--app", "--queues", "--max-threads", "--poll-interval", "--orphan-timeout", "--log-level"],
}
FLAGS = {"--json", "--force", "--accept-arguments", "--check", "--sql", "--reveal", "--dry-run"}


def command_of(name: str, arguments: list[str], given: list[tuple[str, str]]) -> list[str]:
    words = [name]
    for option, value in given:
        words += [option] if option in FLAGS else [f"{option}={value}"]
    if name == "wait" and not any(option == "--timeout" for option, _ in given):
        words += ["--timeout", "0s"]
    if name == "prune":
        words += ["--older-than", "1000d"]  # other tests' executions stay
    if name == "top":
        words += ["--once"]
    if name == "migrate":
        words += ["--check"]  # whether schemas of any name can be made is another test's
    if name == "worker":
        words += ["--app", "tests.fuzz.nothing_here"]
    return [*words, "--", *arguments]


def command_lines() -> st.SearchStrategy[list[str]]:
    return st.sampled_from(sorted(OPTIONS)).flatmap(
        lambda name: st.builds(
            command_of,
            st.just(name),
            st.lists(texts, max_size=2),
            st.lists(
                st.sampled_from(OPTIONS[name]).flatmap(
                    lambda option: st.tuples(st.just(option), json_texts if option == "--data" else texts)
                ),
                max_size=3,
            ),
        )
    )


def run(*words: str, dsn: str | None, input: str | None = None) -> Result:
    environment = {"ZART_DATABASE_URL": dsn, "DATABASE_URL": None, "ZART_APP": None, "ZART_DIRECT_URL": None}
    return CliRunner().invoke(cli, words, env=environment, input=input)


def check(result: Result, words: list[str]) -> None:
    assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exc_info)
    assert result.exit_code in (0, 1, 2, 3, 4), words
    assert "Traceback" not in result.output
    if result.exit_code:
        assert result.stderr.strip(), words
        if result.stderr.startswith("zart: "):
            assert len(result.stderr.splitlines()) <= 3, result.stderr


@examples(100)
@given(command_lines())
@example(["start", "--data=" + "[" * 10_000, "--", "f"])
@example(["list", "--limit=" + "9" * 40, "--"])
@example(["migrate", "--sql", "--schema=\n; DROP TABLE canary; --", "--"])
@example(["cancel", "--reason=\udcff", "--", "\udcff"])
def test_any_words_end_in_an_exit_code_and_a_reason(stage: Stage, words: list[str]) -> None:
    """Each command, with any arguments and options."""
    check(run(*words, dsn=stage.dsn), words)
    stage.check_objects()


@examples(40)
@given(json_texts)
def test_any_data_is_taken_or_refused(stage: Stage, data: str) -> None:
    """As an argument and from standard input."""
    typed = data.encode(errors="replace").decode()
    for words, input in ((["start", "f", f"--data={data}"], None), (["start", "f", "--data", "-"], typed)):
        result = run(*words, dsn=stage.dsn, input=input)
        check(result, words)
        assert result.exit_code in (0, 2)


@examples(100)
@given(addresses)
def test_no_address_shows_its_password_at_the_command_line(address: str) -> None:
    """In the command's output and in its errors, whatever is wrong with it."""
    words = ["dsn", f"--dsn={address}"]
    result = run(*words, dsn=None)
    check(result, words)
    assert SECRET not in result.output


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["status", b"\xff\xfe"], 3),
        (["start", "f", "--data", "[" * 10_000], 2),
        (["stats", "--dsn", f"postgresql://ann:{SECRET}@.host/db"], 2),
    ],
)
def test_bytes_that_are_no_text_are_refused_by_the_command_itself(
    stage: Stage, words: list[str | bytes], code: int
) -> None:
    """In a process of its own, as a shell would start it."""
    ended = subprocess.run(
        [sys.executable, "-m", "zart_cli", *words],
        env=os.environ | {"ZART_DATABASE_URL": stage.dsn},
        capture_output=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    assert b"Traceback" not in ended.stderr
    assert ended.stderr.startswith(b"zart: ")
    assert SECRET.encode() not in ended.stdout + ended.stderr
