"""Retry policies: delays, which exceptions count, the text grammar and its refusals."""

import copy
import datetime as dt
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zart.errors import NonRetryable, RetryAfter, UsageError
from zart.retry import MAX_DELAY, Retry, resolve_max_retries


def no_draw() -> float:
    raise AssertionError("a policy without jitter must not draw")


def delays(retry: Retry, draw: Callable[[], float] = no_draw) -> list[float]:
    return [retry.delay_before(n, draw=draw).total_seconds() for n in range(1, retry.retries + 1)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", []),
        ("none()", []),
        ("fixed(3, 10s)", [10, 10, 10]),
        ("linear(3, 1s)", [1, 2, 3]),
        ("linear(4, 20s, max=1m)", [20, 40, 60, 60]),
        ("exponential(5, 1s)", [1, 2, 4, 8, 16]),
        (" exponential ( 3 , 2s ) ", [2, 4, 8]),
        ("exponential(4, 1s, factor=3, max=10s)", [1, 3, 9, 10]),
        ("exponential(2, 1h30m, factor=1.5)", [5400, 8100]),
        ("fixed(0, 1s)", []),
        ("exponential(2, 0s)", [0, 0]),
    ],
)
def test_delays(text: str, expected: list[float]) -> None:
    """Each policy waits as its text says, and none has a delay after its last attempt."""
    assert delays(Retry.parse(text)) == expected


def test_text_and_objects_agree() -> None:
    """A policy read from text equals the one made by its class method, and hashes alike."""
    made = Retry.exponential(5, "1s", factor=3, max="1m", jitter=0.2)
    read = Retry.parse("exponential(5, 1s, factor=3, max=1m, jitter=0.2)")
    assert made == read
    assert hash(made) == hash(read)
    assert made != Retry.exponential(5, "1s")
    assert Retry.fixed(2, 1.5) == Retry.parse("fixed(2, 1.5s)")
    assert Retry.linear(2, dt.timedelta(minutes=1)) == Retry.parse("linear(2, 1m)")


@pytest.mark.parametrize("kind", ["fixed", "linear", "exponential"])
def test_huge_policies_do_not_overflow(kind: str) -> None:
    """Ten thousand retries of the steepest policy wait at most ten years each."""
    retry: Retry = getattr(Retry, kind)(10_000, "5h")
    assert max(delays(retry)) <= MAX_DELAY.total_seconds()
    assert Retry.exponential(10_000, "1s").delay_before(10_000, draw=no_draw) == MAX_DELAY
    assert Retry.exponential(10_000, 0).delay_before(10_000, draw=no_draw) == dt.timedelta(0)
    assert Retry.exponential(9, "300000d", jitter=1.0).delay_before(9, draw=lambda: 0.999) == MAX_DELAY


def test_jitter_is_drawn_once_and_stays_in_its_bounds() -> None:
    """jitter=0.2 draws once per delay, within 20 % around it, and max still caps the result."""
    retry = Retry.parse("fixed(3, 10s, jitter=0.2)")
    drawn: list[float] = []

    def draw() -> float:
        drawn.append(0.25)
        return 0.25

    assert delays(retry, draw) == [9, 9, 9]
    assert len(drawn) == 3
    source = random.Random(7)
    many = [retry.delay_before(1, draw=source.random).total_seconds() for _ in range(1000)]
    assert 8 <= min(many) < 8.1
    assert 11.9 < max(many) <= 12
    assert delays(Retry.parse("exponential(2, 10s, max=10s, jitter=0.5)"), lambda: 0.9) == [10, 10]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty"),
        ("fibonacci(3, 1s)", "'fibonacci' is no policy"),
        ("exponential(3, 2s", "not of the form"),
        ("exponential 3 2s", "not of the form"),
        ("exponential", "the number of retries and the delay are missing"),
        ("exponential(3)", "the delay is missing"),
        ("exponential(3, 1s, 2s)", "'2s' is one argument too many"),
        ("exponential(three, 1s)", "the number of retries is 'three'"),
        ("exponential(-1, 1s)", "the number of retries is '-1'"),
        ("exponential(1.5, 1s)", "the number of retries is '1.5'"),
        ("exponential(99999999, 1s)", "retries is 99999999"),
        ("exponential(3, 2)", "the delay is '2', which is no length of time"),
        ("exponential(3, -2s)", "the delay is '-2s'"),
        ("exponential(3, 1s, base=2)", "exponential has no option 'base', only factor= and max= and jitter="),
        ("fixed(3, 1s, max=2s)", "fixed has no option 'max', only jitter="),
        ("fixed(3, 1s, jitter=2)", "jitter is 2.0, but it must be a number from 0 to 1"),
        ("fixed(3, 1s, jitter=nan)", "jitter is 'nan', which is no number"),
        ("fixed(3, 1s, jitter=.1, jitter=.1)", "jitter= is given twice"),
        ("fixed(jitter=.1, 3, 1s)", "'3' stands after an option"),
        ("fixed(3, , 1s)", "an argument is empty"),
        ("exponential(3, 1s, factor=0.5)", "factor is 0.5"),
        ("exponential(3, 1s, max=soon)", "max is 'soon'"),
        ("none(3)", "none takes nothing"),
    ],
)
def test_refusals_name_text_problem_and_grammar(text: str, problem: str) -> None:
    """A bad policy is refused with its text, what is wrong in it, and what is accepted."""
    with pytest.raises(UsageError) as caught:
        Retry.parse(text)
    message = str(caught.value)
    assert message.startswith(f"retry {text!r}: ")
    assert problem in message
    assert "exponential(n, delay)" in message


ANYHOW: Any = Retry  # the mistakes below are ones that a type checker would also name


@pytest.mark.parametrize(
    "make",
    [
        lambda: ANYHOW.fixed(-1, "1s"),
        lambda: ANYHOW.fixed(True, "1s"),
        lambda: ANYHOW.fixed(1.0, "1s"),
        lambda: ANYHOW.fixed(10**5000, "1s"),
        lambda: ANYHOW.fixed(1, "1s", jitter=float("nan")),
        lambda: ANYHOW.fixed(1, "1s", jitter=-0.1),
        lambda: ANYHOW.exponential(1, "1s", factor=float("inf")),
        lambda: ANYHOW.exponential(1, "soon"),
        lambda: ANYHOW.linear(1, "1s", max=-1),
        lambda: ANYHOW.fixed(1, "1s", retry_on=ValueError),
        lambda: ANYHOW.fixed(1, "1s", give_up_on=(KeyboardInterrupt,)),
        lambda: ANYHOW.fixed(1, "1s", give_up_on=("ValueError",)),
        lambda: ANYHOW.parse(3),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Retry]) -> None:
    """The class methods refuse what cannot be meant."""
    with pytest.raises(UsageError):
        make()


def test_which_exceptions_are_retried() -> None:
    """retry_on and give_up_on decide; NonRetryable never, RetryAfter always unless given up."""
    every = Retry.fixed(3, "1s")
    assert every.allows(ValueError())
    assert not every.allows(NonRetryable("no"))
    some = Retry.fixed(3, "1s", retry_on=(OSError,), give_up_on=(FileNotFoundError,))
    assert some.allows(ConnectionError())
    assert not some.allows(FileNotFoundError())
    assert not some.allows(ValueError())
    assert some.allows(RetryAfter("1s"))
    assert not Retry.fixed(3, "1s", give_up_on=(RetryAfter,)).allows(RetryAfter("1s"))


def test_a_group_is_given_up_with_its_member() -> None:
    """An exception group with a NonRetryable or given-up member inside is not tried again."""
    retry = Retry.fixed(3, "1s", give_up_on=(KeyError,))
    assert retry.allows(ExceptionGroup("both", [ValueError(), OSError()]))
    assert not retry.allows(ExceptionGroup("both", [ValueError(), ExceptionGroup("in", [NonRetryable()])]))
    assert not retry.allows(ExceptionGroup("both", [ValueError(), KeyError()]))


policies = st.one_of(
    st.just(Retry.none()),
    st.builds(
        Retry.exponential,
        st.integers(0, 1000),
        st.timedeltas(dt.timedelta(0), dt.timedelta(days=900)),
        factor=st.floats(1, 1e6).map(lambda x: round(x, 3)),
        max=st.none() | st.timedeltas(dt.timedelta(0), dt.timedelta(days=900)),
        jitter=st.floats(0, 1).map(lambda x: round(x, 3)),
    ),
    st.builds(Retry.linear, st.integers(0, 1000), st.timedeltas(dt.timedelta(0), dt.timedelta(days=900))),
    st.builds(Retry.fixed, st.integers(0, 1000), st.floats(0, 1e6), jitter=st.just(0.25)),
)


@given(policies)
def test_text_reads_back(retry: Retry) -> None:
    """str() of a policy is text that parse reads back as equal; repr() is an expression that makes it."""
    assert Retry.parse(str(retry)) == retry
    assert eval(repr(retry), {"Retry": Retry}) == retry


def test_repr_shows_the_classes() -> None:
    """repr() names the exception classes, which text cannot."""
    retry = Retry.exponential(3, "2s", retry_on=(OSError, ValueError), give_up_on=(KeyError,))
    assert repr(retry) == "Retry.exponential(3, '2s', retry_on=(OSError, ValueError), give_up_on=(KeyError,))"
    assert repr(Retry.none()) == "Retry.none()"


def test_immutable_and_copyable() -> None:
    """A policy cannot be changed; it survives pickle and copy."""
    retry = Retry.linear(3, "2s", retry_on=(OSError,))
    with pytest.raises(AttributeError):
        retry.retries = 4  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]
    assert pickle.loads(pickle.dumps(retry)) == copy.deepcopy(retry) == retry


def test_max_retries() -> None:
    """An int is that many retries, doubling from a second to a minute; text and policies stand as they are."""
    assert resolve_max_retries(0) == Retry.none()
    assert delays(resolve_max_retries(8)) == [1, 2, 4, 8, 16, 32, 60, 60]
    assert resolve_max_retries("fixed(2, 1s)") == Retry.fixed(2, "1s")
    policy = Retry.fixed(2, "1s")
    assert resolve_max_retries(policy) is policy


@pytest.mark.parametrize("value", [True, -1, 1.5, None, 10**400])
def test_max_retries_refused(value: Any) -> None:
    """max_retries refuses what is no number of retries, and says what it takes."""
    with pytest.raises(UsageError, match="max_retries is"):
        resolve_max_retries(value)
