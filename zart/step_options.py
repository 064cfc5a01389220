"""The options of a step: read and checked once, when it is decorated or varied."""

import datetime as dt
from typing import Any, cast, get_args

import msgspec

from zart.calls import CheckArgs, TimeoutScope, Transaction
from zart.durations import Duration, parse_duration
from zart.errors import UsageError
from zart.retry import Retry


class StepOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the decorator was given, checked."""

    retry: Retry
    timeout: dt.timedelta | None
    timeout_scope: TimeoutScope
    check_args: CheckArgs
    raises: tuple[type[Exception], ...]
    at_most_once: bool
    transaction: Transaction


def read_options(
    what: str,
    *,
    retry: str | Retry | None,
    timeout: Duration | None,
    timeout_scope: TimeoutScope,
    check_args: CheckArgs,
    raises: tuple[type[Exception], ...],
    at_most_once: bool = False,
    transaction: Transaction = False,
) -> StepOptions:
    """Check options; `what` is how errors call the step. Raises UsageError, beginning with it."""
    _check_choice(what, "timeout_scope", timeout_scope, get_args(TimeoutScope))
    _check_choice(what, "check_args", check_args, get_args(CheckArgs))
    if not (
        isinstance(cast("object", raises), tuple)
        and all(isinstance(member, type) and issubclass(member, Exception) for member in cast("Any", raises))
    ):
        raise UsageError(
            f"{what}: raises is {raises!r}, but it must be a tuple of Exception classes: (OSError,)"
        )
    _check_choice(what, "at_most_once", at_most_once, (True, False))
    _check_choice(what, "transaction", transaction, (True, False, "own"))
    if at_most_once and retry is not None and _read_retry(retry, what).retries:
        raise UsageError(
            f"{what}: at_most_once and retry= contradict each other: a step that is tried again may run twice. Catch "
            "its failure in the body, find out what has happened, and go on from there"
        )
    if at_most_once and transaction:
        raise UsageError(
            f"{what}: at_most_once and transaction= contradict each other: a step in a transaction happens exactly "
            "once in this database, and an attempt that came to nothing is made again. Choose one"
        )
    limit = None
    if timeout is not None:
        limit = parse_duration(timeout, what=f"{what}: timeout")
        if not limit:
            raise UsageError(f"{what}: timeout is zero, so that it could never finish; None means no limit")
    return StepOptions(
        retry=_read_retry(retry, what),
        timeout=limit,
        timeout_scope=timeout_scope,
        check_args=check_args,
        raises=raises,
        at_most_once=at_most_once,
        transaction=transaction,
    )


def _read_retry(retry: object, what: str) -> Retry:
    if retry is None:
        return Retry.none()
    if isinstance(retry, Retry):
        return retry
    try:
        return Retry.parse(cast("str", retry))
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None


def _check_choice(what: str, option: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise UsageError(f"{what}: {option} is {value!r}, but it must be one of {known}")
