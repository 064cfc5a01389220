"""Token files: what is accepted, what is refused, and that no text shows a token."""

import logging
import os

import pytest

from tests.support.calling import token_file
from zart import UsageError
from zart.http.tokens import SCOPES, TokenFile, Tokens, load_tokens

SECRET = "a-secret-of-many-signs"


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("ZART_HTTP_TOKEN", raising=False)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_is_a_name_scopes_and_a_token(tmp_path):
    """Comments and blank lines are skipped, columns may be wide, and a `#` inside a token is a part of it."""
    path = token_file(
        tmp_path,
        f"# who may call\n\n  billing\tread,write   {SECRET}#1\n\n# the dashboard\ndashboard read {SECRET}-2\n",
    )
    tokens = load_tokens(path)
    assert tokens is not None
    billing, dashboard = tokens.find(f"{SECRET}#1".encode()), tokens.find(f"{SECRET}-2".encode())
    assert billing is not None
    assert dashboard is not None
    assert (billing.name, billing.scopes) == ("billing", {"read", "write"})
    assert (dashboard.name, dashboard.scopes) == ("dashboard", {"read"})
    assert tokens.find(SECRET.encode()) is None
    assert tokens.find(b"") is None
    assert tokens.find(f"{SECRET}-3\xff".encode("latin-1")) is None


def test_one_name_may_have_two_tokens_while_one_takes_the_others_place(tmp_path):
    """Both are of the same author."""
    tokens = load_tokens(token_file(tmp_path, f"ann read {SECRET}-old\nann read,write {SECRET}-new\n"))
    assert tokens is not None
    found = [tokens.find(f"{SECRET}-{age}".encode()) for age in ("old", "new")]
    assert [token and token.name for token in found] == ["ann", "ann"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("", "holds no token"),
        ("# nobody\n\n", "holds no token"),
        (f"ann read\nbob write {SECRET}\n", "line 1 has 2 parts"),
        (f"ann read {SECRET}\n\nbob read , write {SECRET}2\n", "line 3 has 5 parts"),
        (f"ann {SECRET} read\n", "line 1: the second part must be scopes"),
        (f"ann read,admin {SECRET}\n", "line 1: the second part must be scopes"),
        (f"ann read, {SECRET}\n", "line 1: the second part must be scopes"),
        (f"ann READ {SECRET}\n", "line 1: the second part must be scopes"),
        (f"ann read {SECRET}\nbob write {SECRET}\n", "line 2 has the token of line 1 again"),
        (f"{'n' * 201} read {SECRET}\n", "line 1: the name is"),
        (f"ann read {SECRET}ä\n", "line 1: a token is printable ASCII"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_its_line(tmp_path, lines, told):
    """The text names the file and the line, and shows no token, wherever it may stand."""
    path = token_file(tmp_path, lines)
    with pytest.raises(UsageError, match=told) as refused:
        load_tokens(path)
    assert str(path) in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o610, 0o601])
def test_a_file_that_others_can_touch_is_refused(tmp_path, mode):
    """Group and others have no rights on it; the text says how to mend that."""
    path = token_file(tmp_path)
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"mode {mode:04o}.*chmod 600"):
        load_tokens(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_refused(tmp_path):
    """Whoever owns it could change it."""
    path = token_file(tmp_path)
    os.chown(path, 12345, -1)
    with pytest.raises(UsageError, match="belongs to another user"):
        load_tokens(path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    """A directory, a pipe that nobody writes to, a missing file."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, told in (
        ("pipe", "no regular file"),
        ("", "no regular file|cannot be read"),
        ("missing", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=told):
            load_tokens(tmp_path / name)


def test_the_variable_is_one_token_with_every_scope(monkeypatch):
    """`ZART_HTTP_TOKEN` is for a service with one caller."""
    monkeypatch.setenv("ZART_HTTP_TOKEN", f" {SECRET}\n")
    tokens = load_tokens(None)
    assert tokens is not None
    token = tokens.find(SECRET.encode())
    assert token is not None
    assert token.scopes == SCOPES


@pytest.mark.parametrize("value", ["", "  ", "two words", "gänse"])
def test_a_variable_that_holds_no_token_is_an_error(monkeypatch, value):
    """A secret that did not arrive must not open the service to all."""
    monkeypatch.setenv("ZART_HTTP_TOKEN", value)
    with pytest.raises(UsageError, match="ZART_HTTP_TOKEN is set, but holds no token"):
        load_tokens(None)


def test_the_file_goes_before_the_variable(monkeypatch, tmp_path):
    """What is said explicitly is all that counts."""
    monkeypatch.setenv("ZART_HTTP_TOKEN", SECRET)
    tokens = load_tokens(token_file(tmp_path, f"ann read {SECRET}-file\n"))
    assert tokens is not None
    assert tokens.find(SECRET.encode()) is None
    assert tokens.find(f"{SECRET}-file".encode()) is not None


def test_without_either_there_are_no_tokens():
    """And nothing is made up."""
    assert load_tokens(None) is None


def test_a_short_token_is_warned_of_without_being_shown(tmp_path, caplog):
    """It works, and could be guessed."""
    with caplog.at_level(logging.WARNING, "zart.http"):
        load_tokens(token_file(tmp_path, "ann read pssst\n"))
    assert "line 1: the token has fewer than 16 signs" in caplog.text
    assert "pssst" not in caplog.text


def test_a_file_that_changes_is_read_again(tmp_path, caplog):
    """Within a second; the new tokens count, the old ones do not any more."""
    clock = Clock()
    path = token_file(tmp_path, f"ann read {SECRET}-1\n")
    file = TokenFile(path, clock)
    tokens = Tokens(file.read(), file)
    path.write_text(f"bob read {SECRET}-number-2\n")
    assert tokens.find(f"{SECRET}-1".encode()) is not None, "one look a second"
    clock.now = 1.1
    assert tokens.find(f"{SECRET}-1".encode()) is None
    assert tokens.find(f"{SECRET}-number-2".encode()) is not None


def test_a_file_that_is_broken_later_leaves_the_tokens_as_they_were(tmp_path, caplog):
    """It is logged once, and when it is mended the file counts again."""
    clock = Clock()
    path = token_file(tmp_path, f"ann read {SECRET}-1\n")
    file = TokenFile(path, clock)
    tokens = Tokens(file.read(), file)
    with caplog.at_level(logging.INFO, "zart.http"):
        path.write_text("nonsense\n")
        for clock.now in (2.0, 4.0, 6.0):
            assert tokens.find(f"{SECRET}-1".encode()) is not None
        assert caplog.text.count("line 1 has 1 parts") == 1
        path.unlink()
        for clock.now in (8.0, 10.0):
            assert tokens.find(f"{SECRET}-1".encode()) is not None
        assert caplog.text.count("is gone") == 1
        token_file(tmp_path, f"ann read {SECRET}-3\n")
        clock.now = 12.0
        assert tokens.find(f"{SECRET}-3".encode()) is not None


def test_in_memory_there_is_no_token(tmp_path):
    """Only its digest, under a key of this process."""
    tokens = load_tokens(token_file(tmp_path, f"ann read {SECRET}\n"))
    assert tokens is not None
    assert SECRET not in repr(tokens._tokens)
    assert SECRET.encode() not in tokens._tokens[0].digest
