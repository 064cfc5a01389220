"""One module for each product that is measured: a process of its own, asked by `rounds.Side`.

Each runs in the environment that has its product; they share `rounds` and `latencies`, which need only the standard
library. A side answers these requests, each a line of JSON:

    {"do": "round", "mode", "concurrency", "executions"}      -> {"seconds"}
    {"do": "latencies", "of": "result", "count", "pause"}     -> {"results", "gaps"}, lists of milliseconds
    {"do": "latencies", "of": "event", "count", "pause"}      -> {"resumed"}, a list of milliseconds

Those that start workers for a round, or make up its rows, are told so, and when they may rest:

    {"do": "prepare", "mode", "concurrency", "executions"}    -> {}
    {"do": "rest"}                                            -> {}

Its first line, unasked, tells the versions of its packages. It ends when its standard input does, and what it has
started ends with it.
"""
