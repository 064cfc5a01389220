"""A client's methods are not part of an execution's log: a body would repeat them on every replay."""

from zart.context import place
from zart.errors import UsageError
from zart.in_step import InStep


def refuse_in_body(called: str) -> None:
    """Raise UsageError when this runs in the body of a durable function; steps and everything else may."""
    here = place.get()
    if here is not None and not isinstance(here, InStep):
        raise UsageError(
            f"{called} is called in the body of execution {here.execution_id()!r}, which is replayed while "
            "the call "
            "is not: put it into a step"
        )
