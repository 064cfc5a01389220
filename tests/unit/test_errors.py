"""The errors: their tree, their texts, and that they survive pickle and copy."""

import copy
import datetime as dt
import pickle

import pytest

from zart import errors

FAILURE = errors.Failure(
    type="shop.CardDeclined", message="no such card", step="charge", attempts=3, traceback=""
)

EXAMPLES: list[BaseException] = [
    errors.ZartError("text"),
    errors.UsageError("text"),
    errors.SerializationError("text", what="result of step 'a'"),
    errors.PayloadError("text", path="$.a"),
    errors.PayloadUnreadable("text", key="k1", passing=True),
    errors.NonDeterminismError("text", recorded="a", requested="b"),
    errors.StepFailed(FAILURE),
    errors.StepTimeout("text", step="a", limit=dt.timedelta(seconds=3)),
    errors.StepStuck("text", step="a"),
    errors.StepInterrupted("text", step="a"),
    errors.EventTimeout("text", event="paid", limit=dt.timedelta(hours=1)),
    errors.ExecutionNotFound("text", execution_id="order-1"),
    errors.ExecutionConflict("text", execution_id="order-1"),
    errors.ExecutionFinished("text", execution_id="order-1"),
    errors.ExecutionPruned("text", execution_id="order-1"),
    errors.ExecutionFailed(FAILURE, execution_id="order-1"),
    errors.ExecutionTimeout(FAILURE),
    errors.ExecutionCancelled("text", execution_id="order-1", reason="twice"),
    errors.ExecutionBlocked(FAILURE, execution_id="order-1"),
    errors.ResultTimeout("text", execution_id="order-1"),
    errors.SchemaError("text"),
    errors.NonRetryable("text", 3),
    errors.RetryAfter("30s", "busy", 7),
    errors.NotDurableWarning("text"),
    errors.Suspended("text"),
    errors.ContinuedAsNew(b"7"),
]


def test_every_error_has_an_example() -> None:
    """The list that the tests below walk through is complete."""
    defined = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert {type(example) for example in EXAMPLES} == {
        cls for cls in defined if not cls.__name__.startswith("_")
    }


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_survives_pickle_and_copy(error: BaseException) -> None:
    """An error that crosses a process or is copied keeps its class, text, arguments and attributes."""
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_has_a_text_and_a_place_in_the_tree(error: BaseException) -> None:
    """Each error says something, and the module's docstring shows it."""
    assert str(error)
    assert type(error).__name__ in (errors.__doc__ or "")


def test_the_builtin_bases() -> None:
    """Code that knows only the builtin classes can catch them."""
    assert issubclass(errors.UsageError, TypeError)
    assert issubclass(errors.PayloadError, ValueError)
    assert issubclass(errors.ExecutionNotFound, LookupError)
    for timeout in (errors.StepTimeout, errors.StepStuck, errors.EventTimeout, errors.ResultTimeout):
        assert issubclass(timeout, TimeoutError)
    assert issubclass(errors.ExecutionTimeout, errors.ExecutionFailed)
    assert not issubclass(errors.Suspended, Exception)
    assert not issubclass(errors.ContinuedAsNew, Exception)


def test_a_failure_reads_well() -> None:
    """The text of a failed execution names the class, message, step and attempts."""
    text = str(errors.ExecutionFailed(FAILURE, execution_id="order-1"))
    assert text == "execution 'order-1' failed: shop.CardDeclined: no such card (step 'charge', 3 attempts)"
    body = errors.Failure(type="ValueError", message="", step=None, attempts=1, traceback="")
    assert str(errors.ExecutionFailed(body)) == "execution failed: ValueError (1 attempt)"
    assert "`zart resume order-1`" in str(errors.ExecutionBlocked(FAILURE, execution_id="order-1"))


def test_retry_after_knows_its_delay() -> None:
    """RetryAfter takes any duration, keeps the caller's own arguments and refuses what is no duration."""
    error = errors.RetryAfter("1m30s", "the bank is closed")
    assert error.delay == dt.timedelta(seconds=90)
    assert error.args[1:] == ("the bank is closed",)
    assert str(error) == "the bank is closed (not before 1m30s from now)"
    assert str(errors.RetryAfter(dt.timedelta(seconds=2))) == "not before 2s from now"
    with pytest.raises(errors.UsageError, match="delay of RetryAfter is 'soon'"):
        errors.RetryAfter("soon")
