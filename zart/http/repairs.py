"""The routes by which a person mends an execution: a step tried again, a run begun anew, an execution deleted."""

from typing import Final

import msgspec

from zart.http import views
from zart.http.call import Call
from zart.http.requests import ReasonQuery, RerunBody, RestartBody, RetryStepBody
from zart.http.routing import Routes

REPAIRS: Final = Routes()


@REPAIRS.route(
    "POST",
    "/executions/{execution_id}/retry-step",
    scope="write",
    problems=(404, 409, 422),
    body_required=True,
    example={"key": "charge", "reason": "the bank is up again"},
)
async def retry_step(call: Call, execution_id: str, body: RetryStepBody) -> views.Changed:
    """Give a step that failed for good a new budget of attempts, inside the current run."""
    changed = await call.client.retry_step(execution_id, body.key, reason=body.reason)
    return views.Changed(changed=changed)


@REPAIRS.route(
    "POST",
    "/executions/{execution_id}/restart",
    scope="write",
    problems=(404, 409, 422),
    example={"data": {"user_id": "u-1", "email": "ann@example.org"}, "reason": "the address was wrong"},
)
async def restart_execution(call: Call, execution_id: str, body: RestartBody) -> views.Restarted:
    """Begin a new run of an execution, with another input if one is given.

    The old run is archived, and nothing of it is written any more; events that nobody has consumed are dropped.
    """
    given = () if body.data is msgspec.UNSET else (body.data,)
    run_id = await call.client.restart(execution_id, *given, reason=body.reason)
    return views.Restarted(run_id=run_id)


@REPAIRS.route(
    "POST",
    "/executions/{execution_id}/rerun",
    scope="write",
    problems=(404, 409, 422),
    body_required=True,
    example={"steps": ["charge"], "reason": "it charged the wrong card"},
)
async def rerun_execution(call: Call, execution_id: str, body: RerunBody) -> views.RerunView:
    """Begin a new run in which these steps run again, while the others keep their results."""
    rerun = await call.client.rerun(execution_id, steps=body.steps, reason=body.reason)
    return views.RerunView(run_id=rerun.run_id, stale=rerun.stale)


@REPAIRS.route("DELETE", "/executions/{execution_id}", scope="write", problems=(404, 409, 422))
async def delete_execution(call: Call, execution_id: str, query: ReasonQuery) -> views.Changed:
    """Delete an execution with all that is kept of it."""
    changed = await call.client.delete(execution_id, reason=query.reason)
    return views.Changed(changed=changed)
