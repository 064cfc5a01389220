"""Executions that wait for somebody's approval."""

from typing import Any

import zart
from zart import durable


@durable("approve")
async def approve(number: int) -> dict[str, Any]:
    decision = await zart.wait_for_event("manager-approval", timeout="1h")
    return {"number": number, "approved": decision["approved"]}


registry = zart.Registry(approve)
