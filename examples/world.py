"""The world outside of the examples: a mail server, a billing service, a cluster.

A call of one of them is an effect that cannot be taken back. It is printed, and noted in the file that
`EXAMPLES_LEDGER` names, if it names one, by a line of its own: who called whom about what. Nothing here knows
Zart, so the file can bear witness to how often each step really ran.
"""

import asyncio
import os
from pathlib import Path

_unavailable: set[str] = set()


async def call(service: str, about: str) -> None:
    """Have a service do something. It takes `EXAMPLES_SECONDS_PER_CALL`, by default next to nothing."""
    _note(service, about)
    await asyncio.sleep(float(os.environ.get("EXAMPLES_SECONDS_PER_CALL", "0.05")))
    if service in _unavailable:
        _unavailable.remove(service)
        print(f"  {service:<8}  unavailable", flush=True)
        raise ConnectionError(f"{service} does not answer")
    print(f"  {service:<8}  {about}", flush=True)


def break_once(service: str) -> None:
    """Let the next call of a service fail."""
    _unavailable.add(service)


def _note(service: str, about: str) -> None:
    if ledger := os.environ.get("EXAMPLES_LEDGER"):
        with Path(ledger).open("a") as file:  # a short line is appended whole, whoever else is writing
            file.write(f"{os.getpid()}\t{service}\t{about}\n")
