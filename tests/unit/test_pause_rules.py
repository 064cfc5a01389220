"""What a rule covers, and what a worker makes of the rules."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zart._engine.pauses import NO_RULES, Rule, Rules

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


@pytest.mark.parametrize(
    ("rule", "covered", "let_be"),
    [
        ({"execution_id": "a"}, [("a", "f", None), ("a", "f", "x")], [("b", "f", None), ("b", "f", "x")]),
        ({"name": "f"}, [("a", "f", None), ("b", "f", "x")], [("a", "g", None), ("a", "F", "x")]),
        ({"step": "pay*"}, [("a", "f", "pay"), ("b", "g", "pay-7")], [("a", "f", None), ("a", "f", "x-pay")]),
        ({"step": "?"}, [("a", "f", "x")], [("a", "f", ""), ("a", "f", "xy"), ("a", "f", None)]),
        ({"step": "[ab]-*"}, [("a", "f", "a-1")], [("a", "f", "c-1"), ("a", "f", "A-1")]),
        ({"name": "f", "step": "x"}, [("a", "f", "x")], [("a", "g", "x"), ("a", "f", "y"), ("a", "f", None)]),
        ({"execution_id": "a", "step": "*"}, [("a", "f", "x")], [("b", "f", "x"), ("a", "f", None)]),
    ],
)  # fmt: skip
def test_all_that_a_rule_gives_must_be_so(
    rule: dict[str, str],
    covered: list[tuple[str, str, str | None]],
    let_be: list[tuple[str, str, str | None]],
) -> None:
    """An id, a name, a pattern; without a step only what says nothing of steps covers it."""
    made = Rule(id="r", **rule)
    assert [work for work in covered if not made.covers(*work)] == []
    assert [work for work in let_be if made.covers(*work)] == []


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_pattern_can_be_asked(pattern: str, name: str) -> None:
    """It fits or it does not, at once; a name without special signs fits itself."""
    Rule(id="r", step=pattern).covers("a", "f", name)
    if not set(name) & set("*?["):
        assert Rule(id="r", step=name).covers("a", "f", name)


def learned(*rules: Rule) -> Rules:
    made = Rules([1, 2, 3], {1: "f", 2: "g"})  # 3 is a step's
    made.learn(7, rules, NOW)
    return made


def test_only_a_rule_over_all_of_a_function_closes_its_lanes() -> None:
    """One by id, or by steps, holds back what the worker meets, and leaves the lanes open."""
    assert learned(Rule(id="r", name="f")).closed == [1]
    assert learned(Rule(id="r", name="f")).open == [2, 3]
    for rule in (
        Rule(id="r", name="f", step="x"),
        Rule(id="r", execution_id="a"),
        Rule(id="r", name="other"),
    ):
        assert (learned(rule).open, learned(rule).closed) == ([1, 2, 3], [])


def test_what_has_expired_holds_nothing_and_is_still_to_be_deleted() -> None:
    """Its time is the next one to look at, until it is gone."""
    over, coming = Rule(id="a", name="f", expires_at=NOW), Rule(id="b", name="g", expires_at=NOW + HOUR)
    rules = learned(over, coming, Rule(id="c", step="x"))
    assert rules.closed == [2]
    assert rules.next_end == NOW
    assert rules.has_ended(NOW)
    assert rules.covering("a", "f") is None
    assert learned(coming).next_end == NOW + HOUR
    assert not learned(coming).has_ended(NOW)


@pytest.mark.parametrize(("execution", "told"), [("e", "d"), ("other", "b")])
def test_the_rule_that_names_an_execution_is_told_or_else_the_oldest(execution: str, told: str) -> None:
    """Of those that cover it, in the order in which they were read."""
    rules = learned(
        Rule(id="a", step="y"),
        Rule(id="b", name="f"),
        Rule(id="c", execution_id="e", step="y"),
        Rule(id="d", execution_id="e"),
    )
    found = rules.covering(execution, "f", "x")
    assert found is not None
    assert found.id == told
    assert rules.any
    assert not NO_RULES.any
    assert NO_RULES.covering("e", "f", "x") is None
