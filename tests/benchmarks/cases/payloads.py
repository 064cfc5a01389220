"""Large values: as results of steps, as their arguments, and as what executions are started with."""

import base64
import random
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

import zart
from tests.benchmarks.bench import Bench, Case, note
from tests.benchmarks.figures import Unit
from tests.benchmarks.in_process import closed_loop_for, expect, in_loop, working
from tests.benchmarks.meter import Meter
from tests.support.running import query

SIZES: Final = {"100 B": 100, "10 kB": 10_000, "500 kB": 500_000}
STEPS: Final = 5
CALLERS: Final = 32
ROUNDS: Final = 5
SECONDS: Final = 4.0

_RANDOM: Final = random.Random(5)
TEXTS: Final = {
    name: base64.b64encode(_RANDOM.randbytes(size)).decode()[:size] for name, size in SIZES.items()
}
"""They hardly compress, so the database stores what is sent."""


class Asked(msgspec.Struct, frozen=True):
    size: str
    steps: int


@zart.step("gives")
async def gives(size: str) -> str:
    return TEXTS[size]


@zart.step("takes")
async def takes(text: str) -> int:
    return len(text)


@zart.durable("results")
async def results(asked: Asked) -> int:
    intact = [await gives(asked.size) == TEXTS[asked.size] for _ in range(asked.steps)]
    return sum(intact)


@zart.durable("arguments")
async def arguments(asked: Asked) -> int:
    intact = [await takes(TEXTS[asked.size]) == SIZES[asked.size] for _ in range(asked.steps)]
    return sum(intact)


@zart.durable("inputs")
async def inputs(text: str) -> int:
    return len(text)


REGISTRY: Final = zart.Registry(results, arguments, inputs)


class Load(msgspec.Struct, kw_only=True, frozen=True):
    """What a caller does again and again."""

    setup: str
    size: int
    """Of one value, in bytes."""
    call: Callable[[], Awaitable[int]]
    """Returns how many such values there were."""
    unit: Unit


def run(bench: Bench) -> None:
    in_loop(measure(bench))


async def measure(bench: Bench) -> None:
    dsn = bench.database("payloads")
    await zart.migrate(dsn)
    async with working(dsn, REGISTRY) as client:
        with Meter(bench, dsn) as meter:
            rounds = bench.options.scaled(ROUNDS)
            for number in range(rounds):
                note(f"  payloads, round {number + 1} of {rounds}")
                for load in loads(client):
                    await one_round(bench, meter, load)
                    # Its tables would soon hold gigabytes.
                    for table in ("zart_steps", "zart_executions"):
                        await query(dsn, f"TRUNCATE {table}")


def loads(client: zart.Client) -> list[Load]:
    return [load for size in SIZES for load in loads_of(client, size)]


def loads_of(client: zart.Client, size: str) -> list[Load]:
    async def with_results() -> int:
        expect(await client.start_and_wait(results, Asked(size, STEPS)), STEPS, "results as they were given")
        return STEPS

    async def with_arguments() -> int:
        expect(await client.start_and_wait(arguments, Asked(size, STEPS)), STEPS, "arguments taken")
        return STEPS

    async def with_input() -> int:
        expect(await client.start_and_wait(inputs, TEXTS[size]), SIZES[size], "the input's length")
        return 1

    return [
        Load(setup=f"{size} as result of a step", size=SIZES[size], call=with_results, unit="steps/s"),
        Load(setup=f"{size} as argument of a step", size=SIZES[size], call=with_arguments, unit="steps/s"),
        Load(
            setup=f"{size} as input of an execution", size=SIZES[size], call=with_input, unit="executions/s"
        ),
    ]


async def one_round(bench: Bench, meter: Meter, load: Load) -> None:
    await load.call()  # its plans
    begun = meter.read()
    callers = min(
        CALLERS, bench.options.scaled(20 * CALLERS)
    )  # fewer only for a look at whether it works at all
    count, took = await closed_loop_for(SECONDS * bench.options.scale, [load.call] * callers)
    used = meter.since(begun)
    bench.add("i", "Zart", load.setup, load.unit.partition("/")[0], load.unit, count / took)
    bench.add("i", "Zart", load.setup, "payload per second", "MiB", count * load.size / took / 2**20)
    bench.add("i", "Zart", load.setup, "WAL bytes each", "bytes", used.wal_bytes / count)


CASE = Case(
    letter="i",
    title="payloads",
    long=True,
    told=(
        f"Values of 100 B, 10 kB and 500 kB, text that hardly compresses, {CALLERS} executions at a time: as results "
        f"of the {STEPS} steps of an execution, which are stored; as arguments of {STEPS} steps, of which the journal "
        "has a digest and the first 500 bytes; and as the input of an execution without steps, which is stored. Starts "
        "and results of the executions are within the time, and their WAL within its bytes. Worker and client are one "
        f"process; {ROUNDS} rounds of {SECONDS:.0f} s, in which all take turns. That values come back as they were is "
        "checked."
    ),
    run=run,
)
