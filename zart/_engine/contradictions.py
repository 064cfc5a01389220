"""Code that is not the code that wrote the log: found, the execution is blocked, and nothing is run or lost.

    a call without a record   It stands where another call is recorded which nobody has asked for: something was
                              renamed, inserted or moved. The log knows which (`Log.contradiction`).
    other arguments           The call is the recorded one, and is given something else. How strict that is, the step
                              says (`check_args`); whoever resumes the execution may accept it.

A contradiction is told as the text of a `NonDeterminismError` that names both sides. Whoever has asked is unwound by a
`Suspended` at once, so no line of such a body runs on.
"""

from typing import TYPE_CHECKING, NoReturn

from zart._engine.entries import Key, StoredEntry
from zart.calls import StepCall
from zart.errors import NonDeterminismError, Suspended

if TYPE_CHECKING:
    from zart._engine.activation import Activation


def refuse_contradiction(
    activation: "Activation",
    key: Key,
    digest: bytes | None,
    used: int | None = None,
    *,
    gives: bool = False,
) -> None:
    """Block the execution if this call, which has no record, stands in the place of one that has. See the log."""
    record = activation.log.contradiction(key, digest, used, gives=gives)
    if record is not None:
        contradict(
            activation,
            f"the code asks for {key.kind} {key}, where {record.key.kind} {record.key} is recorded as number "
            f"{record.seq} and is not asked for; nothing was run. Mend the code, then resume the execution",
            record.key,
            key,
        )


def refuse_arguments(activation: "Activation", record: StoredEntry, call: StepCall | None) -> None:
    """The arguments of a call are not the recorded ones: block the execution, if that is not to be let pass."""
    policy = call.spec.check_args if call is not None else "block"
    told = (
        f"{record.key.kind} {record.key} was recorded with other arguments ({record.arguments or 'not kept'})"
    )
    if policy == "warn" or activation.claim.accept_arguments:
        activation.notes.append(("warning", told))
        return
    contradict(
        activation,
        f"{told} than the code gives it now; make the code give the recorded ones, or accept the new ones with "
        "`resume --accept-arguments`",
        record.key,
        record.key,
    )


def contradict(activation: "Activation", told: str, recorded: Key, requested: Key) -> NoReturn:
    """Block the execution: the code is not the one that wrote the log."""
    error = NonDeterminismError(
        f"execution {activation.claim.execution_id!r}: {told}",
        recorded=str(recorded),
        requested=str(requested),
    )
    activation.block(error, "non-determinism")
    raise Suspended
