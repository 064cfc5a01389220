"""An agent: a model is asked what to do, its tools are called, and what they say is given back to it, until it answers.

Run it with `make example-agent_loop`. The model and the tools are stubs. Each call of one is a step: a crash repeats
neither a call that is paid for nor a tool that had its effect, and tools that are asked for together run together.
After every second turn it begins anew with what was said so far: an agent that talks for weeks has a short history.
"""

import asyncio
from typing import Literal

import msgspec

import zart
from examples import world
from examples.stage import stage
from zart import durable, step

MOST_TURNS = 10
TURNS_IN_A_RUN = 2


class Message(msgspec.Struct):
    role: Literal["user", "model", "tool"]
    text: str


class Conversation(msgspec.Struct):
    messages: list[Message]
    turns: int = 0
    """So many there were in earlier runs."""


class ToolCall(msgspec.Struct):
    tool: str
    about: str


class Reply(msgspec.Struct):
    """What the model says: that it wants tools to be called, or its answer."""

    calls: list[ToolCall] = []
    answer: str | None = None


@step("model", retry="exponential(5, 200ms)", timeout="2m")
async def think(messages: list[Message]) -> Reply:
    await world.call("model", f"reads {len(messages)} messages")
    return stub_model(messages)


@step("tool-{call.tool}", retry="exponential(3, 200ms)", timeout="1m")
async def use(call: ToolCall) -> str:
    await world.call(call.tool, call.about)
    return TOOLS[call.tool][call.about]


@durable("agent")
async def agent(talk: Conversation) -> str:
    messages = talk.messages
    for _ in range(TURNS_IN_A_RUN):
        reply = await think(messages)
        if reply.answer is not None:
            return reply.answer
        said = await asyncio.gather(*(use(call) for call in reply.calls))
        messages += [Message("model", f"{call.tool}: {call.about}") for call in reply.calls]
        messages += [Message("tool", text) for text in said]
    turns = talk.turns + TURNS_IN_A_RUN
    if turns < MOST_TURNS:
        zart.continue_as_new(Conversation(messages, turns))
    raise zart.NonRetryable(f"no answer after {turns} turns")


registry = zart.Registry(agent)


# ------------------------------------------------------------ the stubs

TOOLS = {
    "atlas": {"population of Bamberg": "80000", "population of Erlangen": "120000"},
    "adder": {"80000 + 120000": "200000"},
}


def stub_model(messages: list[Message]) -> Reply:
    """A model that knows one line of thought."""
    told = [message.text for message in messages if message.role == "tool"]
    if not told:
        return Reply([ToolCall("atlas", about) for about in TOOLS["atlas"]])
    if len(told) == 2:
        return Reply([ToolCall("adder", " + ".join(told))])
    return Reply(answer=f"{told[-1]} people")


async def main() -> None:
    async with stage() as client, zart.Worker(client, registry):
        question = "How many people live in Bamberg and Erlangen together?"
        print(question)
        world.break_once("adder")
        asked = Conversation([Message("user", question)])
        print(await client.start_and_wait(agent, asked, id="question-1", timeout="30s"))
        print(f"{len((await client.history('question-1')).runs)} runs")


if __name__ == "__main__":
    asyncio.run(main())
