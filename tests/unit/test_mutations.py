"""The mutations of `tests/mutations` fit the code as it is; `make mutations` runs them."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.mutations.catalogue import MUTATIONS, SURVIVORS
from tests.mutations.mutation import Edit, Mutation, Rotten
from tests.support.proofs import ROOT, is_there

every_mutation = pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)


@every_mutation
def test_its_old_text_is_there_once_and_the_new_one_is_code(mutation: Mutation) -> None:
    """Whoever changes a line that a mutation breaks changes the mutation with it."""
    texts: dict[str, str] = {}
    for edit in mutation.edits:
        before = texts.get(edit.file) or (ROOT / edit.file).read_text()
        texts[edit.file] = edit.of(before)
        assert texts[edit.file] != before
    for file, text in texts.items():
        if file.endswith(".py"):
            ast.parse(text, filename=file)


@every_mutation
def test_the_tests_that_must_notice_are_there(mutation: Mutation) -> None:
    """Each names at least one test, and a test that must go on working."""
    assert mutation.tests
    for test in mutation.all_tests:
        assert is_there(test), test


def test_names_are_used_once() -> None:
    """A mutation is asked for by its name."""
    assert [name for name, count in Counter(one.name for one in MUTATIONS).items() if count > 1] == []
    assert SURVIVORS.keys().isdisjoint(one.name for one in MUTATIONS)


def test_a_text_that_is_not_there_once_is_refused(tmp_path: Path) -> None:
    """None, two, or none in the statement that is meant: a mutation never breaks something else silently."""
    (tmp_path / "q.sql").write_text("-- name: a\nSELECT 1;\n-- name: b\nSELECT 1;\nSELECT 2;\n")
    for old, under in (("SELECT 1", None), ("SELECT 3", None), ("SELECT 2", "a"), ("SELECT 1", "c")):
        with pytest.raises(Rotten):
            Edit(file="q.sql", old=old, new="", under=under).apply(tmp_path)
    Edit(file="q.sql", old="SELECT 1", new="SELECT 9", under="b").apply(tmp_path)
    assert (tmp_path / "q.sql").read_text() == "-- name: a\nSELECT 1;\n-- name: b\nSELECT 9;\nSELECT 2;\n"
