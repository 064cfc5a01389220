"""The whole table of routes."""

from typing import Final

from zart.http.executions import EXECUTIONS
from zart.http.operations import OPERATIONS
from zart.http.pauses import PAUSES
from zart.http.repairs import REPAIRS
from zart.http.routing import Route

ROUTES: Final[tuple[Route, ...]] = (
    *EXECUTIONS.routes,
    *REPAIRS.routes,
    *PAUSES.routes,
    *OPERATIONS.routes,
)
