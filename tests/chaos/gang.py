"""The worker processes: whoever ends is replaced, so that there are always some.

A place of the gang is direct or behind the proxy, and whoever is put into it has that way to the database. A process
that ends without having been told to is a violation, unless it found no database when it started.
"""

import asyncio
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.driver import Violations
from tests.support.processes import Crew, WorkerProcess

APP = "tests.chaos.load:registry"
ORPHAN_TIMEOUT = 2.0
OPTIONS = {
    "orphan_timeout": "2s",
    "heartbeat_interval": "200ms",
    "shutdown_timeout": "2s",
    "poll_interval": "200ms",
    "wedge_timeout": "30s",
    # Executions that are taken over again and again are the machine's doing, not theirs.
    "max_recoveries": "100",
}


@dataclass(kw_only=True)
class Member:
    """A process in a place of the gang."""

    process: WorkerProcess
    told: list[str] = field(default_factory=list)
    """The faults that it was or is under."""
    may_end: bool = False
    stopped: bool = False
    """It does not run just now: SIGSTOP."""


class Gang:
    """See the module."""

    def __init__(self, crew: Crew, addresses: list[str], violations: Violations) -> None:
        self.crew = crew
        self.exits: Counter[str] = Counter()
        self._addresses = addresses
        self._violations = violations
        self._members = [self._begin(address) for address in addresses]
        self._due: dict[int, float] = {}
        self._ending = False

    @property
    def members(self) -> list[Member]:
        return list(self._members)

    def pick(self, chance: random.Random) -> Member:
        """A living member, one that is not stopped if there is one."""
        living = [member for member in self._members if member.process.exit_code is None]
        awake = [member for member in living if not member.stopped]
        return chance.choice(awake or living or self._members)

    def begin_again(self, member: Member, told: str) -> None:
        member.told.append(told)
        member.may_end = True

    async def ready(self) -> None:
        """Until all of them look for work."""
        for member in self._members:
            await member.process.until_logged(r"worker \d+ runs", within=60)

    async def keep(self) -> None:
        """Replace those who end, a moment later."""
        while not self._ending:
            for place, member in enumerate(self._members):
                if member.process.exit_code is None:
                    continue
                due = self._due.setdefault(place, time.monotonic() + random.random())
                if time.monotonic() >= due:
                    del self._due[place]
                    self._look_at_end(member)
                    self._members[place] = self._begin(self._addresses[place])
            await asyncio.sleep(0.1)

    def _begin(self, address: str) -> Member:
        return Member(process=self.crew.begin(APP, dsn=address, **OPTIONS))

    def _look_at_end(self, member: Member) -> None:
        code = member.process.exit_code
        if member.may_end:
            self.exits[f"told ({', '.join(sorted(set(member.told)))}), exit code {code}"] += 1
        elif _found_no_database(member):
            self.exits["found no database at its start"] += 1
        else:
            self._violations.add(
                f"worker process {member.process.pid} ended by itself with exit code {code}; its log ends with\n"
                f"{member.process.log[-3000:]}"
            )

    def wake(self) -> None:
        """Nobody stays stopped."""
        for member in self._members:
            if member.process.exit_code is None:
                member.process.send(signal.SIGCONT)
                member.stopped = False

    async def end(self) -> None:
        """All are told to end, and do."""
        self._ending = True
        self.wake()
        for member in self._members:
            if member.process.exit_code is None:
                member.may_end = True
                member.process.send(signal.SIGTERM)
        for member in self._members:
            try:
                code = await member.process.until_ended(within=30)
            except AssertionError as error:
                self._violations.add(f"{error}; its log ends with\n{member.process.log[-3000:]}")
                continue
            self._violations.check(
                holds=code in (0, -signal.SIGKILL)
                or (code == -signal.SIGTERM and not member.process.worker_ids)
                or _found_no_database(member),
                text=f"process {member.process.pid} ended with exit code {code} after SIGTERM",
            )


def _found_no_database(member: Member) -> bool:
    log = member.process.log
    return member.process.exit_code == 1 and "zart: no connection to" in log and "Traceback" not in log
