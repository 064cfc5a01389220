"""What a worker does about the rules that hold executions back: hears of changes, ends what has expired, and lets go.

Every worker does all of it, on the connection that claims, and only when there is something to do: while nothing
changes it asks for nothing.
"""

import datetime as dt
from typing import NamedTuple

from zart._engine.pauses import Rule, Rules
from zart._engine.points import reach
from zart._postgres.direct import Direct, statements

_BATCH = 500
_AGAIN = dt.timedelta(milliseconds=50)
"""Until what somebody else has in his hands is tried again."""


class Freed(NamedTuple):
    """What was let go."""

    freed: int = 0
    ready: int = 0
    """How many of these can be claimed."""


class RuleKeeper:
    """See the module. `changes` is always the number that the database has just told."""

    def __init__(self, schema: str, rules: Rules) -> None:
        self._statements = statements("pauses", schema)
        self._rules = rules
        self._frees = False
        """Whether there may be something that was paused for rules which are gone."""

    async def begin(self, direct: Direct) -> None:
        """Read the rules, if nobody has so far: what they hold is not even to be claimed then."""
        if self._rules.changes is None:
            await self._read(direct)

    async def hear(self, direct: Direct, changes: int | None) -> None:
        """Read the rules if they have changed."""
        if changes != self._rules.changes:
            await self._read(direct)

    async def look(self, direct: Direct, changes: int | None, now: dt.datetime) -> Freed:
        """All that there is to do."""
        await self.hear(direct, changes)
        if self._rules.has_ended(now):
            reach("rules.ending")
            await direct.rows(self._statements["end_expired"], {})
            reach("rules.ended")
            await self._read(direct)
        return await self._free(direct) if self._frees else Freed()

    def has_work(self, changes: int | None, now: dt.datetime) -> bool:
        """Whether a look would do something."""
        return changes != self._rules.changes or self._rules.has_ended(now) or self._frees

    def next_look(self, sleeper: dt.datetime | None, now: dt.datetime) -> dt.datetime | None:
        """When to look again, where the next sleeper is due at this time."""
        again = now + _AGAIN if self._frees or self._rules.has_ended(now) else self._rules.next_end
        return min((time for time in (sleeper, again) if time is not None), default=None)

    async def _read(self, direct: Direct) -> None:
        reach("rules.begin")
        rows = await direct.rows(self._statements["rules"], {})
        reach("rules.read")
        rules = [
            Rule(id=rule, execution_id=execution, name=name, step=step, expires_at=expires)
            for _, _, rule, execution, name, step, expires in rows
            if rule is not None
        ]
        self._frees = True
        changes, now = rows[0][:2]
        self._rules.learn(changes, rules, now)

    async def _free(self, direct: Direct) -> Freed:
        reach("pauses.begin")
        ((found, freed, ready),) = await direct.rows(self._statements["free"], {"batch": _BATCH})
        reach("pauses.committed")
        self._frees = found > 0
        return Freed(freed, ready)
