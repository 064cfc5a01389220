"""The journal's statements that say the same in different lengths."""

import re

import pytest

from zart._postgres.queries import load

STATEMENTS = load("journal", "public")


def part(name: str, begin: str, end: str) -> str:
    found = re.search(re.escape(begin) + r".*?" + re.escape(end), STATEMENTS[name].decode(), re.DOTALL)
    assert found is not None
    return found[0]


@pytest.mark.parametrize("name", ["record_one", "record_and_end", "record_and_finish"])
def test_what_a_record_may_take_the_place_of_is_said_alike(name: str) -> None:
    """One entry, many, and entries with endings follow one rule."""
    rule = "ON CONFLICT", "RETURNING s.token"
    assert part(name, *rule) == part("record", *rule)


@pytest.mark.parametrize(
    "name", ["record_one", "record_and_end", "finish", "record_and_finish", "begin_anew"]
)
def test_the_fence_comes_first_everywhere(name: str) -> None:
    """The same row, locked the same way."""
    fence = "WITH fence AS MATERIALIZED", "FOR KEY SHARE"
    assert part(name, *fence) == part("record", *fence)


def test_a_final_ending_is_said_alike() -> None:
    """Alone, and beside entries of other runs."""
    ending = "held AS MATERIALIZED", "RETURNING 1"
    assert part("record_and_finish", *ending) == part("finish", *ending)
