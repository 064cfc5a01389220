"""Case a: five no-op steps, by 1, 32, 100 and 500 callers; in the same rounds the raw ceiling, of case k."""

from typing import Final

import psycopg

from tests.benchmarks.bench import Bench, Case
from tests.benchmarks.cases.raw_ceiling import ceiling
from tests.benchmarks.peers import PEERS, Sides, sides_of
from tests.benchmarks.race import Contender, Race, rate
from tests.benchmarks.rounds import STEPS

COUNTED: Final = 100
"""Callers whose transactions are counted, by PostgreSQL; case c counts the commits that wait for the disk."""


def run(bench: Bench) -> None:
    with sides_of(bench) as sides:
        zart = zarts(bench)
        bare = ceiling() if bench.options.ceiling else []
        peers = [contender for name in sides.products() if name != "Zart" for contender in modes(bench, name)]
        counted = next((contender for contender in zart if contender.own), None)
        before = 0
        if counted is not None:
            sides.get(counted.product, counted.way, counted.own)  # makes the tables
            before = commits(sides, counted)
        Race(bench, "a", sides).run([*zart, *bare, *peers])
        if counted is not None:
            sides.close(
                counted.product, counted.way, counted.own
            )  # which tells the server of its last commits
            share = (commits(sides, counted) - before) / (counted.executed * STEPS)
            what = "transactions per step, those that only read among them"
            bench.add("a", "Zart", counted.told, what, "ratio", share)
            bench.target("a", f"{what}, at concurrency {COUNTED}", share, 0.1, at_least=False)
    compare(bench, zart, bare, peers)


def zarts(bench: Bench) -> list[Contender]:
    """One worker process with its client, and the same with all executions started at once."""
    callers = [
        Contender(
            product="Zart",
            way="together",
            own="counted" if number == COUNTED else "",
            mode="callers",
            callers=number,
            told=told(number),
        )
        for number in bench.options.callers
    ]
    at_once = Contender(
        product="Zart",
        way="together",
        mode="start_many",
        callers=COUNTED,
        told="100 at a time, all started by one call",
        least=500,
    )
    return [*callers, at_once]


def modes(bench: Bench, peer: str) -> list[Contender]:
    """What a peer offers, in the order of the callers."""
    return [
        Contender(product=peer, way=way, mode=mode, callers=number, told=f"{told(number)}, {name}")
        for number in bench.options.callers
        for way, mode, name in PEERS[peer].modes
        if number > 1 or mode not in PEERS[peer].not_alone
    ]


def told(callers: int) -> str:
    return f"{callers} caller{'s' if callers > 1 else ''}"


def commits(sides: Sides, contender: Contender) -> int:
    """Of the contender's database, since it was made."""
    dsn = sides.dsn(contender.product, contender.way, contender.own)
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    assert row is not None
    return int(row[0])


def compare(bench: Bench, zart: list[Contender], bare: list[Contender], peers: list[Contender]) -> None:
    rates = {
        contender.told: figure.median
        for contender in zart
        if contender.mode == "callers" and (figure := rate(bench, "a", contender)) is not None
    }
    limits = [figure.median for contender in bare if (figure := rate(bench, "a", contender)) is not None]
    if limits and told(100) in rates:
        ratio = rates[told(100)] / max(limits)
        bench.target("a", "steps per second at concurrency 100, against the raw ceiling", ratio, 0.5)
    measured = [
        (contender, figure.median)
        for contender in peers
        if (figure := rate(bench, "a", contender)) is not None and contender.product not in bench.left_out
    ]
    if measured and told(100) in rates:
        best, best_rate = max(measured, key=lambda pair: pair[1])
        name = f"the best peer's best ({best.product}, {best.told})"
        for wanted, aim in ((15, ""), (25, " (the aim)")):
            ratio = rates[told(100)] / best_rate
            bench.target("a", f"steps per second at concurrency 100, against {name}{aim}", ratio, wanted)
    alone = [(contender, value) for contender, value in measured if contender.callers == 1]
    if alone and told(1) in rates:
        best, best_rate = max(alone, key=lambda pair: pair[1])
        name = f"the best peer's ({best.product}, {best.told})"
        bench.target("a", f"steps per second at concurrency 1, against {name}", rates[told(1)] / best_rate, 4)


CASE = Case(
    letter="a",
    title="five no-op steps per execution: throughput",
    long=False,
    told="Callers run one execution after another, each from its start to its result; all of that is within the time. "
    "Zart's worker and client are one process. Heats first, in which the modes of a peer compete; the best for "
    "each number of callers goes on to the rounds, which take turns in alternating order. A figure of one round is a "
    "heat's, or that of a peer whose round is long. Every result is checked. Processor time is that of the product's "
    "processes and of the PostgreSQL server together; other programs on the machine distort it least.",
    run=run,
)
