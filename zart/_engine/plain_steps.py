"""The straight path of a step: an `async def` without a limit, in no saga and no transaction, that returns at once.

Nearly every call of a step is one. What is told of retries, transactions and threads in `step_calls` costs more than
such a call itself: so it asks the log, runs its function, hands the record to the journal and waits for the body's
turn, in one coroutine that keeps nothing but its variables.

It decides nothing that `step_calls` decides, too. Where anything is out of the ordinary it goes there, at one of two
places:

    before its function has run    The call was under way already when this worker claimed the execution (an attempt
                                   has failed, or was interrupted), there is no room for one more step, the lease is in
                                   doubt, rules hold steps back, or the body was closed while the call waited: a run
                                   of its own begins.
    after it                       The function has failed, or the database has refused what it returned: a run of its
                                   own goes on from the end of the first attempt.

What an attempt is, and what it leaves behind, is said once, in `step_attempts`.
"""

import functools
from typing import TYPE_CHECKING, Any

from zart._engine import telling
from zart._engine.branch import Branch
from zart._engine.entries import Entry, Key
from zart._engine.points import reach
from zart._engine.step_attempts import Running, attempt
from zart._engine.step_calls import StepRun
from zart.calls import StepCall
from zart.errors import SerializationError
from zart.in_step import Inside
from zart.telemetry.hub import hub

if TYPE_CHECKING:
    from zart._engine.steps import Steps


async def run_plain(steps: "Steps", branch: Branch, key: Key, call: StepCall) -> Any:
    """What a plain step returns or raises, by its record or by running it: see the module."""
    activation = branch.activation
    digest, preview = call.digest()
    if not branch.goes_on_at_once(key, digest):
        record = await branch.recorded(key, digest, call)
        if record is not None:
            return branch.value_of(record, call.spec)
    host = activation.host
    unusual = activation.closed or host.rules.any or key in activation.log.by_key
    if unusual or not (host.fresh and steps.take_slot()):
        return await steps.run(branch, key, call, digest, preview)
    began = host.now()
    step = Running(key, 1, began, began, False, Inside(), marks=activation.phase.marks)  # noqa: FBT003 (may run again)
    step.inside.on_progress = functools.partial(steps.progressed, step)
    reach("step.begin")
    run = telling.told_attempt if hub.listening else attempt
    try:
        decoded, result, error = await run(steps, branch, step, call)
    finally:
        steps.give_back()
    if error is None:
        finished = host.now()
        reach("step.returned")
        completed = Entry(
            run_id=activation.claim.run_id,
            key=key,
            state="completed",
            done=None,
            digest=digest,
            arguments=preview,
            result=result,
            started_at=began,
            finished_at=finished,
            progress=step.inside.progress,
        )
        try:
            branch.heard(await branch.parked(activation.submit(completed)))
        except SerializationError as refused:
            error = refused
        else:
            return decoded
    return await StepRun(steps, branch, key, call, digest=digest, preview=preview).after(step, error)
