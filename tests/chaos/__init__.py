"""A machine that tries to break Zart with real processes: `python -m tests.chaos --minutes 20`.

A server of its own (fsync on), a crew of `zart worker` processes, some of them behind a TCP proxy, and clients that
start mixed workflows all the time. Meanwhile faults happen, drawn from a seed: processes are killed, stopped or
blocked, connections cut, the server restarted. At the end, and as it goes, what came out is compared with what had
to come out, by evidence from outside of Zart.

    effects.py    the append-only log that steps write: what really ran, where and how often
    load.py       the workflows, as an app for `zart worker`
    scripts.py    what is done to each execution from outside, and what must come out of it
    driver.py     clients that start executions, send events, cancel, wait, and send again
    server.py     the database server: crashed and started again at will
    gang.py       the worker processes: there are always some
    faults.py     what goes wrong, and when
    verdict.py    the invariants, checked from outside at the end
    report.py     figures, the table, the JSON file
"""
