"""The routes for those who run the service: how much there is of what, whether it lives, what it offers."""

from typing import Any, Final

from zart.http import views
from zart.http.call import Call
from zart.http.metrics import CONTENT_TYPE, exposition
from zart.http.readiness import trouble
from zart.http.routing import Reply, Routes

OPERATIONS: Final = Routes()


@OPERATIONS.route("GET", "/stats", scope="read")
async def get_stats(call: Call) -> views.StatsView:
    """How many executions there are by status, work that nobody serves, and live workers."""
    return views.view_stats(await call.client.stats())


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
