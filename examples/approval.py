"""An approval with deadlines: who does not decide in time is passed over, and the next one is asked.

Run it with `make example-approval`. The patience is a second or two, so that it is over soon; days cost the same.
"""

import asyncio

import msgspec

import zart
from examples import world
from examples.stage import stage
from zart import durable, step

LADDER = [("the team lead", "1s"), ("the department", "2s"), ("the board", "60s")]
"""Who is asked, one after the other, and how long each one has."""


class Expense(msgspec.Struct):
    what: str
    euros: int


class Decision(msgspec.Struct):
    by: str
    approved: bool


Decided = zart.Event("decided", Decision)


@step("ask")
async def ask(who: str, expense: Expense) -> None:
    await world.call("mail", f"to {who}: {expense.euros} euros for {expense.what}?")


@step("pay")
async def pay(expense: Expense) -> None:
    await world.call("bank", f"pay {expense.euros} euros")


@durable("approval")
async def approval(expense: Expense) -> str:
    for who, patience in LADDER:
        await ask(who, expense)
        try:
            decision = await zart.wait_for_event(Decided, timeout=patience)
        except zart.EventTimeout:
            continue
        if not decision.approved:
            return f"refused by {decision.by}"
        await pay(expense)
        return f"approved by {decision.by}"
    return "nobody has decided"


registry = zart.Registry(approval)


async def main() -> None:
    async with stage() as client, zart.Worker(client, registry):
        expense = Expense(what="a trip to Bamberg", euros=120)
        handle = await client.start(approval, expense, id="trip-1")
        # It may come before anybody waits for it: events are kept.
        await client.offer_event("trip-1", Decided, Decision(by="the team lead", approved=True))
        print(f"trip-1: {await handle.result(timeout='30s')}")

        expense = Expense(what="a trip to the moon", euros=1_000_000)
        handle = await client.start(approval, expense, id="trip-2")
        await until_asked(client, "trip-2", times=len(LADDER))
        await client.offer_event("trip-2", Decided, Decision(by="the board", approved=False))
        print(f"trip-2: {await handle.result(timeout='30s')}")


async def until_asked(client: zart.Client, id: str, *, times: int) -> None:
    """Until so many were asked."""
    while True:
        records = (await client.history(id)).records
        if sum(record.name == "ask" and record.state == "completed" for record in records) == times:
            return
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main())
