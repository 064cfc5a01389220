"""Durations and retry policies as text: what is valid comes back as it was written, all else is refused by name."""

import datetime as dt
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.examples import attempt, examples
from tests.fuzz.strategies import no_texts, texts
from zart import Retry, WorkerConfig
from zart.durations import MAX_DURATION, format_duration, parse_duration
from zart.retry import resolve_max_retries

_digits = st.one_of(
    st.integers(0, 10**6).map(str),
    st.sampled_from(
        ["9" * 400, "0" * 400 + "1", "1." + "9" * 400, ".5", "1.", "1e5", "-1", "+1", "٣", "1_000", "0x1", ""]
    ),
)
_units = st.sampled_from(["w", "d", "h", "m", "s", "ms", "us", "min", "H", "", " s", "s ", "\u017f", "µs"])
durations = st.one_of(
    st.lists(st.tuples(_digits, _units).map("".join), max_size=4).map("".join),
    st.lists(st.tuples(_digits, _units).map(" ".join), max_size=4).map(" ".join),
    texts,
)
_numbers = st.one_of(_digits, st.sampled_from(["nan", "inf", "1e999", "None", "True", "1,2"]))
_names = st.sampled_from(["factor", "max", "jitter", "retries", "delay", "", "__class__"])
policies = st.one_of(
    st.builds(
        lambda name, open, inside, close: f"{name}{open}{', '.join(inside)}{close}",
        st.sampled_from(
            ["none", "fixed", "linear", "exponential", "EXPONENTIAL", "jitter", "", "fixed fixed"]
        ),
        st.sampled_from(["(", "((", "", " ("]),
        st.lists(
            st.one_of(
                _digits,
                durations,
                st.builds(
                    "{}={}".format,
                    st.sampled_from(["factor", "max", "jitter", "retries", "delay", "", "__class__"]),
                    _numbers,
                ),
                st.builds("max={}".format, durations),
            ),
            max_size=5,
        ),
        st.sampled_from([")", "))", "", ") x"]),
    ),
    texts,
)


@examples(600)
@given(durations)
def test_a_duration_is_read_or_refused(text: str) -> None:
    """What is read is from nothing to a thousand years, and written back it is read as the same."""
    length, refusal = attempt(parse_duration, text, what="it")
    if length is None:
        assert str(refusal).startswith("it is ")
        assert len(str(refusal)) < 400
    else:
        assert dt.timedelta() <= length <= MAX_DURATION
        assert parse_duration(format_duration(length)) == length


@examples(200)
@given(st.timedeltas(dt.timedelta(), MAX_DURATION))
def test_what_is_written_is_read_back(length: dt.timedelta) -> None:
    """To the microsecond."""
    assert parse_duration(format_duration(length)) == length


@examples(200)
@given(st.one_of(st.integers(), st.floats(), no_texts, st.timedeltas()))
def test_what_is_no_text_is_a_duration_or_refused(value: Any) -> None:
    """Numbers of any size and kind, and things that are no numbers."""
    length, refusal = attempt(parse_duration, value)
    assert refusal or dt.timedelta() <= (length or dt.timedelta()) <= MAX_DURATION


@examples(600)
@given(policies)
def test_a_policy_is_read_or_refused(text: str) -> None:
    """What is read is written back as text that means the same, and each delay of it can be reckoned."""
    policy, refusal = attempt(Retry.parse, text)
    if policy is None:
        assert "accepted" in str(refusal)
        assert len(str(refusal)) < 1500
        return
    assert Retry.parse(str(policy)) == policy
    for attempts in (1, 2, 1000, 10**9):
        for drawn in (0.0, 0.999):
            delay = policy.delay_before(attempts, draw=lambda drawn=drawn: drawn)
            assert dt.timedelta() <= delay <= dt.timedelta(days=3650)


@examples(200)
@given(st.one_of(no_texts, st.integers(), st.floats(), texts))
def test_what_a_function_or_worker_is_told_is_taken_or_refused(value: Any) -> None:
    """`max_retries`, and every field of a worker's settings."""
    attempt(resolve_max_retries, value)
    for field in WorkerConfig.__dataclass_fields__:
        attempt(WorkerConfig, **{field: value})
