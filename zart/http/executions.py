"""The routes of executions: start, look, wait, send events, cancel, resume."""

from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from zart import (
    Client,
    ExecutionBlocked,
    ExecutionCancelled,
    ExecutionFailed,
    PayloadUnreadable,
    ResultTimeout,
)
from zart.durations import parse_duration
from zart.http import views
from zart.http.call import Call
from zart.http.paths import encode_segment
from zart.http.requests import (
    CancelBody,
    HistoryQuery,
    ListQuery,
    ResultQuery,
    ResumeBody,
    StartBody,
    read_duration,
)
from zart.http.routing import Reply, Routes

EXECUTIONS: Final = Routes()

_ENDED = ("completed", "failed", "cancelled", "blocked")
"""Waiting longer brings nothing new."""


@EXECUTIONS.route(
    "POST",
    "/events/{execution_id}/{event}",
    scope="write",
    status=202,
    problems=(404, 409, 422),
    dedup=True,
    example={"approved": True},
)
async def offer_event(call: Call, execution_id: str, event: str, body: Any) -> views.Offered:
    """Offer an event to an execution.

    The body is the event's payload, any JSON; without one it is null. The event is kept until a wait of the execution
    consumes it. With the header `Idempotency-Key` a second one of that key is not added: send again whatever you are
    not sure of.
    """
    added = await call.client.offer_event(execution_id, event, body, dedup=call.idempotency_key)
    return views.Offered(added=added)


@EXECUTIONS.route(
    "POST",
    "/executions",
    scope="write",
    status=201,
    other={200: "It existed before: the same function, with the same input."},
    problems=(409, 422),
    body_required=True,
    example={
        "name": "onboarding",
        "id": "order-4711",
        "data": {"user_id": "u-1", "email": "ann@example.com"},
    },
)
async def start_execution(call: Call, body: StartBody) -> Reply[views.Started]:
    """Start an execution of a function, by its name.

    The same id with the same function and input is the execution that exists, in whatever state: nothing runs twice.
    Anything else under that id is a conflict.
    """
    given = () if body.data is msgspec.UNSET else (body.data,)
    handle = await call.client.start(
        body.name,
        *given,
        version=body.version,
        id=body.id,
        delay=body.delay,
        at=body.at,
        queue=body.queue,
        priority=body.priority,
        on_conflict=body.on_conflict,
    )
    return Reply(
        views.Started(id=handle.id, created=handle.created),
        status=201 if handle.created else 200,
        headers={"Location": f"{call.path.rstrip('/')}/{encode_segment(handle.id)}"},
    )


@EXECUTIONS.route("GET", "/executions", scope="read", problems=(422,))
async def list_executions(call: Call, query: ListQuery) -> Reply[views.Page]:
    """List executions, the newest first, a page at a time."""
    found = [
        execution
        async for execution in call.client.executions(
            name=query.name,
            status=query.status,
            id_prefix=query.id_prefix,
            since=query.since,
            until=query.until,
            after=query.after,
            limit=query.limit + 1,
        )
    ]
    shown = [views.view_execution(each, payloads=call.payloads) for each in found[: query.limit]]
    if len(found) <= query.limit:
        return Reply(views.Page(executions=shown, next=None))
    next_path = f"{call.path}?{_query_of(msgspec.structs.replace(query, after=shown[-1].id))}"
    return Reply(views.Page(executions=shown, next=next_path), headers={"Link": f'<{next_path}>; rel="next"'})


@EXECUTIONS.route("GET", "/executions/{execution_id}", scope="read", problems=(404,))
async def get_execution(call: Call, execution_id: str) -> views.ExecutionView:
    """How an execution stands."""
    return views.view_execution(await call.client.status(execution_id), payloads=call.payloads)


@EXECUTIONS.route("GET", "/executions/{execution_id}/history", scope="read", problems=(404,))
async def get_history(call: Call, execution_id: str, query: HistoryQuery) -> views.HistoryView:
    """What an execution did in a run: its records in order, and who did what to it."""
    history = await call.client.history(execution_id, run_id=query.run_id)
    return views.view_history(history, payloads=call.payloads)


@EXECUTIONS.route("GET", "/executions/{execution_id}/runs", scope="read", problems=(404,))
async def get_runs(call: Call, execution_id: str) -> views.Runs:
    """The runs of an execution that are kept; `history?run_id=` shows each."""
    runs = await call.client.runs(execution_id)
    shown = [views.view_run(run, payloads=call.payloads) for run in runs]
    return views.Runs(execution_id=execution_id, run_id=shown[-1].run_id, runs=shown)


@EXECUTIONS.route(
    "GET",
    "/executions/{execution_id}/result",
    scope="read",
    other={202: "It has not ended. Ask again, as often as you like."},
    problems=(404, 422),
)
async def get_result(call: Call, execution_id: str, query: ResultQuery) -> Reply[views.Outcome]:
    """Wait for an execution's end.

    200 says how it ended: `completed`, `failed` or `cancelled`; or that it is `blocked`, which a wait does not change.
    202 says that `timeout` passed first. Without `timeout` this does not wait.
    """
    wanted = parse_duration(read_duration(query.timeout), what="timeout")
    limit = min(wanted, call.options.longest_wait)
    try:
        outcome = await call.wait(_outcome(call.client, execution_id, limit.total_seconds()))
        if outcome is None:  # the service stops
            outcome = await _standing(call.client, execution_id)
    except PayloadUnreadable:
        if call.payloads:
            raise
        outcome = views.Outcome(
            execution_id=execution_id, status="completed"
        )  # so much is told without a key
    if not call.payloads:
        outcome = _without_payloads(outcome)
    return Reply(outcome, status=200 if outcome.status in _ENDED else 202)


@EXECUTIONS.route(
    "POST",
    "/executions/{execution_id}/cancel",
    scope="write",
    problems=(404, 422),
    example={"reason": "the customer asked for it"},
)
async def cancel_execution(call: Call, execution_id: str, body: CancelBody) -> views.Changed:
    """Cancel an execution.

    One that never ran, or is blocked, ends at once; any other runs its cleanup first, which may take a while: wait for
    its result. `changed` is false when it has ended or was asked to end before.
    """
    changed = await call.client.cancel(execution_id, reason=body.reason, force=body.force)
    return views.Changed(changed=changed)


@EXECUTIONS.route(
    "POST",
    "/executions/{execution_id}/resume",
    scope="write",
    problems=(404, 422),
    example={"reason": "the step has its old name again"},
)
async def resume_execution(call: Call, execution_id: str, body: ResumeBody) -> views.Changed:
    """Let a blocked execution go on. `changed` is false when it is not blocked."""
    changed = await call.client.resume(
        execution_id, reason=body.reason, accept_arguments=body.accept_arguments
    )
    return views.Changed(changed=changed)


# ---------------------------------------------------------------- results


async def _outcome(client: Client, execution_id: str, timeout: float) -> views.Outcome:
    """The end of an execution, or how it stands when `timeout` seconds have passed."""
    try:
        result = await client.wait_completion(execution_id, timeout=timeout)
    except (ExecutionFailed, ExecutionCancelled, ExecutionBlocked, ResultTimeout):
        return await _standing(client, execution_id)
    return views.Outcome(execution_id=execution_id, status="completed", result=result)


async def _standing(client: Client, execution_id: str) -> views.Outcome:
    execution = await client.status(execution_id)
    if execution.status == "completed":  # it has ended since
        result = await client.wait_completion(execution_id, timeout=0)
        return views.Outcome(execution_id=execution_id, status="completed", result=result)
    return views.Outcome(
        execution_id=execution_id,
        status=execution.status,
        failure=views.view_failure(execution.failure, payloads=True),
    )


def _without_payloads(outcome: views.Outcome) -> views.Outcome:
    failure = outcome.failure
    if failure is not None:
        failure = msgspec.structs.replace(failure, message=msgspec.UNSET, traceback=msgspec.UNSET)
    return msgspec.structs.replace(outcome, result=msgspec.UNSET, failure=failure)


def _query_of(query: ListQuery) -> str:
    """A query as it is asked: what has its default is left out."""
    given = msgspec.to_builtins(query)
    usual = msgspec.to_builtins(ListQuery())
    return urlencode({name: value for name, value in given.items() if value != usual[name]})
