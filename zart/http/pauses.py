"""The routes of pauses: rules that hold back one execution, a function's, or steps."""

from typing import Final

from zart.http import views
from zart.http.call import Call
from zart.http.problems import NO_RULE, Refused
from zart.http.requests import PauseBody, ReasonQuery, read_expiry
from zart.http.routing import Routes

PAUSES: Final = Routes()


@PAUSES.route("GET", "/pauses", scope="read")
async def list_pauses(call: Call) -> views.Pauses:
    """The rules that stand."""
    return views.Pauses(
        pauses=[
            views.PauseView(
                id=rule.id,
                execution_id=rule.execution_id,
                name=rule.name,
                step=rule.step,
                reason=rule.reason,
                author=rule.author,
                expires_at=rule.expires_at,
            )
            for rule in await call.client.pauses()
        ]
    )


@PAUSES.route(
    "POST",
    "/pauses",
    scope="write",
    status=201,
    problems=(404, 409, 422),
    body_required=True,
    example={"name": "onboarding", "step": "charge-*", "reason": "the bank is down", "expires": "2h"},
)
async def pause(call: Call, body: PauseBody) -> views.Paused:
    """Hold back one execution, the executions of a function, or the steps that match a pattern.

    What runs finishes its step.
    """
    rule = await call.client.pause(
        body.execution_id,
        name=body.name,
        step=body.step,
        reason=body.reason,
        expires=read_expiry(body.expires),
    )
    return views.Paused(id=rule)


@PAUSES.route("DELETE", "/pauses/{rule}", scope="write", problems=(404, 422))
async def unpause(call: Call, rule: str, query: ReasonQuery) -> views.Changed:
    """End a pause: what it held back goes on."""
    if not await call.client.unpause(rule, reason=query.reason):
        raise Refused(NO_RULE, f"there is no pause {rule!r}: it has expired, or somebody has ended it")
    return views.Changed(changed=True)
