"""Exceptions as data: rebuilt as they were, without running code that a row could choose."""

import datetime as dt
import json
import sqlite3
import types
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_errors import EXAMPLES
from zart import errors
from zart.failures import (
    MAX_MESSAGE_BYTES,
    MAX_TRACEBACK_BYTES,
    KnownExceptions,
    RecordedTraceback,
    exception_from_json,
    exception_to_json,
    failure_from_json,
)

ran: list[str] = []


class PaymentError(Exception):
    """A class whose constructor cannot be called with its arguments."""

    def __init__(self, code: int, *, retry: bool) -> None:
        ran.append("init")
        self.code = code
        self.retry = retry
        super().__init__(f"declined with {code}")

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        ran.append("new")
        return super().__new__(cls, *args)


class CardDeclined(PaymentError):
    """A class of its own below another."""


class Missing(PaymentError, KeyError):
    """Two bases, one of them built in."""


class FileGone(OSError):
    def __init__(self, name: str) -> None:
        self.wanted = name
        super().__init__(2, "it is gone", name)


class Sealed(ValueError):
    def __init_subclass__(cls) -> None:
        raise TypeError("nothing derives from Sealed")


KNOWN = KnownExceptions(globals())
NONE_KNOWN = KnownExceptions()


def rebuilt(error: BaseException, known: KnownExceptions = KNOWN) -> Exception:
    data = exception_to_json(error, step="charge", attempts=3)
    assert b"\\u0000" not in data
    return exception_from_json(data.decode(), known)


def caught(fail: Any) -> Exception:
    try:
        fail()
    except Exception as error:
        return error
    raise AssertionError


def fields(error: BaseException) -> tuple[Any, ...]:
    return type(error), str(error), error.args, vars(error)


@pytest.mark.parametrize(
    "error", [e for e in EXAMPLES if isinstance(e, Exception)], ids=lambda error: type(error).__name__
)
def test_zarts_own_errors_keep_everything(error: Exception) -> None:
    """Class, text, arguments and attributes of each of zart's errors survive."""
    assert fields(rebuilt(error, NONE_KNOWN)) == fields(error)


@pytest.mark.parametrize(
    "fail",
    [
        lambda: Path("/no/such/file").read_text(),
        b"\xff".decode,
        lambda: {}["a"],
        lambda: 1 // 0,
        lambda: int("x"),
        lambda: unknown_name,  # type: ignore[name-defined]  # noqa: F821
        lambda: (1).nothing,  # type: ignore[attr-defined]
        lambda: __import__("no_such_module"),
        lambda: compile("a b", "file", "exec"),
        lambda: next(iter([])),
        "\ud800".encode,
    ],
)
def test_builtin_errors_are_the_same(fail: Any) -> None:
    """What Python raises is caught and printed as before, with what it keeps beside its arguments."""
    error = caught(fail)
    again = rebuilt(error, NONE_KNOWN)
    assert type(again) is type(error)
    assert str(again) == str(error)
    for name in ("errno", "filename", "name", "start", "value", "lineno"):
        assert getattr(again, name, None) == getattr(error, name, None)


def test_a_users_class_keeps_its_arguments_and_attributes_and_runs_no_code() -> None:
    """Neither __init__ nor __new__ of the class runs."""
    error = CardDeclined(51, retry=False)
    ran.clear()
    again = rebuilt(error)
    assert not ran
    assert fields(again) == (
        CardDeclined,
        "declined with 51",
        ("declined with 51",),
        {"code": 51, "retry": False},
    )
    assert rebuilt(Missing(404, retry=True)).code == 404  # type: ignore[attr-defined]
    gone = rebuilt(FileGone("a.txt"))
    assert (gone.errno, gone.strerror, gone.filename, gone.wanted) == (2, "it is gone", "a.txt", "a.txt")  # type: ignore[attr-defined]


def test_values_keep_their_types() -> None:
    """Arguments and attributes of the usual types come back as they were."""
    values: tuple[Any, ...] = (
        None, True, 3, 2**80, 1.5, "text", [1, (2, {"a": {3}, "$kind": "set", "\0": "\ud800"})], frozenset({1}),
        b"\x00", Decimal("1.10"), dt.datetime(2030, 1, 2, tzinfo=dt.UTC), dt.date(2030, 1, 2), dt.time(3),
        dt.timedelta(5), uuid.UUID(int=1),
    )  # fmt: skip
    error = ValueError(*values)
    error.detail = {"nested": list(values)}  # type: ignore[attr-defined]
    again = rebuilt(error)
    assert (again.args, vars(again)) == (values, vars(error))
    assert repr(again.args) == repr(values)


def test_what_cannot_be_stored_becomes_text_or_is_left_out() -> None:
    """An argument becomes its repr; an attribute is better missing than of another type."""
    error = ValueError(object, {1: 2})
    error.connection = object()  # type: ignore[attr-defined]
    again = rebuilt(error)
    assert again.args == ("<class 'object'>", "{1: 2}")
    assert not vars(again)


def test_where_classes_are_looked_for() -> None:
    """In what the step names, in its module, in the modules that it imported, and nowhere else."""
    module = types.SimpleNamespace(Error=sqlite3.IntegrityError)
    error = sqlite3.IntegrityError("twice")
    assert isinstance(rebuilt(error, NONE_KNOWN), errors.StepFailed)
    for known in (
        KnownExceptions(classes=[sqlite3.IntegrityError]),
        KnownExceptions(vars(module)),
        KnownExceptions({"sqlite3": sqlite3}),
    ):
        assert type(rebuilt(error, known)) is sqlite3.IntegrityError


def test_a_module_is_looked_at_when_it_is_complete() -> None:
    """A class that is defined below the step is found."""
    names: dict[str, Any] = {}
    known = KnownExceptions(names)
    names["CardDeclined"] = CardDeclined
    assert type(rebuilt(CardDeclined(1, retry=True), known)) is CardDeclined


def test_proxies_in_a_module_do_no_harm() -> None:
    """An object that cannot even be asked for its class is passed over."""

    class Proxy:
        @property
        def __class__(self) -> Any:
            raise RuntimeError

    known = KnownExceptions({"request": Proxy(), "CardDeclined": CardDeclined})
    assert type(rebuilt(CardDeclined(1, retry=True), known)) is CardDeclined


def test_an_unknown_class_is_a_step_failed_that_its_known_base_catches() -> None:
    """`except PaymentError` catches what derives from it, even when the class itself cannot be seen."""
    again = rebuilt(CardDeclined(51, retry=True), KnownExceptions(classes=[PaymentError]))
    assert isinstance(again, errors.StepFailed)
    assert isinstance(again, PaymentError)
    assert again.code == 51
    assert str(again) == "tests.unit.test_failures.CardDeclined: declined with 51 (step 'charge', 3 attempts)"
    assert (again.failure.step, again.failure.attempts) == ("charge", 3)
    assert type(rebuilt(CardDeclined(51, retry=True), NONE_KNOWN)) is errors.StepFailed
    gone = rebuilt(FileGone("a"), NONE_KNOWN)
    assert isinstance(gone, OSError)
    assert gone.filename == "a"

    class Stop(errors.NonRetryable): ...

    assert isinstance(rebuilt(Stop("no"), NONE_KNOWN), errors.NonRetryable)

    class Below(KeyError): ...

    assert isinstance(rebuilt(Below("a"), NONE_KNOWN), KeyError)


def test_a_base_from_which_nothing_derives_is_passed_over() -> None:
    """The next known base is taken."""
    below = type.__new__(type, "Below", (ValueError,), {})
    data = json.loads(exception_to_json(below("x")))
    data["bases"] = [data["type"], "tests.unit.test_failures.Sealed", "ValueError"]
    again = exception_from_json(json.dumps(data), KNOWN)
    assert isinstance(again, errors.StepFailed)
    assert isinstance(again, ValueError)


@pytest.mark.parametrize("error", [KeyboardInterrupt("x"), SystemExit(3), GeneratorExit()])
def test_what_is_no_exception_is_never_raised_in_a_body(error: BaseException) -> None:
    """A BaseException becomes a StepFailed."""
    assert type(rebuilt(error)) is errors.StepFailed


def test_groups_are_rebuilt_with_their_members() -> None:
    """except* works as before, whatever is nested in what."""
    group = ExceptionGroup("two", [CardDeclined(1, retry=True), ExceptionGroup("inner", [KeyError("a")])])
    again = rebuilt(group)
    assert type(again) is ExceptionGroup
    assert str(again) == str(group)
    assert again.exceptions[0].code == 1  # type: ignore[attr-defined]
    matched, rest = again.split(KeyError)
    assert matched is not None
    assert rest is not None
    partly = rebuilt(group, NONE_KNOWN).exceptions[0]  # type: ignore[attr-defined]
    assert isinstance(partly, errors.StepFailed)
    assert partly.failure.step == "charge"
    mixed = BaseExceptionGroup("mixed", [KeyboardInterrupt(), ValueError(1)])
    assert isinstance(rebuilt(mixed).exceptions[1], ValueError)  # type: ignore[attr-defined]


def test_the_cause_and_the_traceback_come_along_as_text() -> None:
    """Where it was raised, and from what, is told by the cause of the rebuilt exception."""

    def fail() -> None:
        try:
            raise KeyError("the root of it")
        except KeyError as error:
            raise CardDeclined(1, retry=True) from error

    error = caught(fail)
    again = rebuilt(error)
    assert isinstance(again.__cause__, RecordedTraceback)
    for told in ("the root of it", "in fail", "declined with 1", "direct cause"):
        assert told in str(again.__cause__)
        assert told in failure_from_json(exception_to_json(error)).traceback


def test_notes_survive() -> None:
    """add_note is part of what was raised."""
    error = ValueError("x")
    error.add_note("while shipping")
    assert rebuilt(error).__notes__ == ["while shipping"]


def test_a_failure_for_people() -> None:
    """What client and command line show."""
    failure = failure_from_json(exception_to_json(CardDeclined(51, retry=True), step="charge", attempts=2))
    assert (failure.type, failure.message) == ("tests.unit.test_failures.CardDeclined", "declined with 51")
    assert (failure.step, failure.attempts) == ("charge", 2)
    assert failure_from_json(exception_to_json(ValueError("x"))).type == "ValueError"


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError


def circular() -> Exception:
    error = ValueError()
    error.args = (error,)
    error.__cause__ = error
    error.me = error  # type: ignore[attr-defined]
    return error


def nested_groups() -> Exception:
    error: Exception = ValueError("x")
    for _ in range(200):
        error = ExceptionGroup("g", [error])
    return error


@pytest.mark.parametrize(
    "error",
    [
        Hostile(object()),
        ValueError("\0\ud800", b"\0"),
        type("Odd", (Exception,), {"__module__": 3, "__qualname__": "\ud800\0"})("x"),
        ValueError("x" * 10**6, ["y" * 10**6], *range(10**5)),
        ValueError(10**5000),
        ExceptionGroup("many", [ValueError("x" * 10**4) for _ in range(1000)]),
        nested_groups(),
        circular(),
    ],
    ids=range(8),
)
def test_encoding_never_raises_and_is_bounded(error: Exception) -> None:
    """Whatever an exception carries, its failure can be recorded."""
    data = exception_to_json(error, step="a\0\ud800", attempts=2)
    assert b"\\u0000" not in data
    assert len(data) < 1 << 20
    failure = failure_from_json(data)
    assert len(failure.message.encode()) <= MAX_MESSAGE_BYTES + 3
    assert len(failure.traceback.encode()) <= MAX_TRACEBACK_BYTES + 10
    assert failure.attempts == 2
    assert isinstance(exception_from_json(data, KNOWN), Exception)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.timedeltas()
    | st.uuids(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.lists(values), st.dictionaries(st.text(), values))
def test_any_arguments_and_attributes_are_stable(args: list[Any], state: dict[str, Any]) -> None:
    """What was rebuilt once is rebuilt the same again: a replay sees what the first run saw."""
    error = ValueError(*args)
    error.__dict__.update(state)
    first = rebuilt(error)
    second = rebuilt(first)
    assert repr((first.args, vars(first))) == repr((second.args, vars(second)))


@pytest.mark.parametrize(
    "data",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"type": 3}',
        '{"type": "ValueError", "args": 3}',
        '{"type": "ValueError", "args": [{"$kind": "date", "value": "no date"}]}',
        '{"type": "ValueError", "args": [{"$kind": "os.system", "value": "ls"}]}',
        '{"type": "ValueError", "args": [{"$kind": "tuple"}]}',
        '{"type": "ValueError", "args": [{"$kind": [], "value": 1}]}',
        '{"type": "zart.errors.StepFailed"}',
        '{"type": "zart.errors.RetryAfter", "args": ["soon"]}',
        '{"type": "zart.errors.ExecutionFailed", "state": {"failure": "none"}}',
        '"\ud800"',
        '{"type": "ValueError", "args": ' + "[" * 5000,
    ],
)
def test_a_row_that_was_edited_by_hand_is_a_clear_error(data: str) -> None:
    """A PayloadError says so; no other exception gets out."""
    with pytest.raises(errors.PayloadError, match="stored failure"):
        exception_from_json(data, KNOWN)


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "eval", "KeyboardInterrupt", "zart.errors.Suspended", "sqlite3.Error"],
)
def test_a_stored_name_imports_and_runs_nothing(name: str) -> None:
    """A name that is on no list is only a name."""
    assert type(exception_from_json(json.dumps({"type": name}), NONE_KNOWN)) is errors.StepFailed


class Secretive(type):
    """A metaclass that tells nothing about its classes."""

    def __getattribute__(cls, name: str) -> object:
        if name in ("__module__", "__qualname__", "__mro__"):
            raise RuntimeError(name)
        return super().__getattribute__(name)


class Hidden(Exception, metaclass=Secretive):
    pass


def test_a_class_that_hides_its_name_is_stored_and_rebuilt_like_any_other():
    """Nor does it keep the others in its module from being found."""
    known = KnownExceptions(module_globals=globals())
    for error in (Hidden("no"), errors.StepTimeout("late"), ValueError("bad")):
        assert type(exception_from_json(exception_to_json(error), known)) is type(error)
