"""The routes for those who run the service: how much there is of what, whether it lives, what it offers."""

from typing import Any, Final

from zart.http import views
from zart.http.call import Call
from zart.http.metrics import CONTENT_TYPE, exposition
from zart.http.readiness import trouble
from zart.http.requests import PruneBody
from zart.http.routing import Reply, Routes

OPERATIONS: Final = Routes()


@OPERATIONS.route("GET", "/stats", scope="read")
async def get_stats(call: Call) -> views.StatsView:
    """How many executions there are by status, work that nobody serves, and live workers."""
    return views.view_stats(await call.client.stats())


@OPERATIONS.route("GET", "/workers", scope="read")
async def get_workers(call: Call) -> views.Workers:
    """Which workers there are, what they serve and hold; one that is gone, until its work was taken over."""
    return views.Workers(workers=[views.view_worker(worker) for worker in await call.client.workers()])


@OPERATIONS.route(
    "POST",
    "/prune",
    scope="write",
    problems=(422,),
    body_required=True,
    example={"older_than": "30d", "statuses": ["completed"], "keep_ids": "90d", "dry_run": True},
)
async def prune(call: Call, body: PruneBody) -> views.PrunedView:
    """Take away executions that ended long ago, in small batches; calling it again goes on where it was broken off."""
    pruned = await call.client.prune(
        older_than=body.older_than, statuses=body.statuses, keep_ids=body.keep_ids, dry_run=body.dry_run
    )
    return views.PrunedView(deleted=pruned.deleted, emptied=pruned.emptied, records=pruned.records)


@OPERATIONS.route("GET", "/openapi.json", scope="read", client=False)
async def get_openapi(call: Call) -> Any:
    """This API, as OpenAPI 3.1 describes it."""
    service = call.service
    mounted_at = call.path.rstrip("/").removesuffix(f"{service.prefix}/openapi.json")
    return service.document | {"servers": [{"url": mounted_at or "/"}]}


@OPERATIONS.route("GET", "/healthz", scope="probe", prefixed=False, client=False)
async def healthz(call: Call) -> views.Health:  # noqa: ARG001 (it lives if it answers)
    """Whether the service lives. It asks nobody."""
    return views.Health(status="ok")


@OPERATIONS.route(
    "GET",
    "/readyz",
    scope="probe",
    prefixed=False,
    client=False,
    other={503: "It cannot: `reason` says why."},
)
async def readyz(call: Call) -> Reply[views.Health]:
    """Whether the service can be used: the database answers, and has the tables of this version."""
    reason = await trouble(call.service)
    if reason is None:
        return Reply(views.Health(status="ok"))
    return Reply(views.Health(status="unavailable", reason=reason), status=503)


@OPERATIONS.route("GET", "/metrics", scope="read", prefixed=False, media_type=CONTENT_TYPE)
async def get_metrics(call: Call) -> str:
    """What Prometheus reads: executions by status, work that nobody serves, workers."""
    return await exposition(call.client, waiting=call.service.waiting)
