"""Rules that hold executions back, as one worker knows them, and the steps that wait for their end.

    a rule by a function's name    its lanes are closed: they are not asked for, so nobody pays for what waits in them
    a rule by an execution's id    its row is paused by whoever made the rule; one that is claimed all the same, since
                                   something else than the rule has let it go, is parked before its body runs
    any rule                       before an attempt of a step that it covers, the step waits; once its body is parked,
                                   the execution is given back as paused, and claimed again when the rule has ended

Everything that a worker asks the database for says how often the rules have changed; a worker that hears another number
than before reads them all. So it never acts on a claim under rules that are older than the claim.

A rule is no input of the log: what is recorded is delivered, and a step that waits has no record. So it leaves no
trace in what a body observes but the time that has passed. What is to be cancelled is held back by nothing any more:
its cleanup goes on to the end.
"""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

import msgspec

from zart._engine import parking
from zart._engine.entries import Key, Paused
from zart._engine.points import reach

if TYPE_CHECKING:
    from zart._engine.activation import Activation
    from zart._engine.branch import Branch
    from zart._engine.parking import DurableFuture


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What is held back: whatever all that is given here is true of."""

    id: str
    execution_id: str | None = None
    name: str | None = None
    step: str | None = None
    """A pattern: `*` for any signs, `?` for one, `[abc]` for one of these."""
    expires_at: dt.datetime | None = None

    def covers(self, execution_id: str, name: str, step: str | None = None) -> bool:
        """Whether it holds back a step of an execution; without a step, all that the execution does."""
        return (
            (self.execution_id is None or self.execution_id == execution_id)
            and (self.name is None or self.name == name)
            and (self.step is None or (step is not None and fnmatchcase(step, self.step)))
        )

    def is_over(self, now: dt.datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    @property
    def closes(self) -> str | None:
        """The function of which it holds everything back."""
        return self.name if self.execution_id is None and self.step is None else None


class Rules:
    """The rules, as they were at the last look; `any` says whether there are any at all."""

    def __init__(self, lanes: Sequence[int] = (), functions: Mapping[int, str] | None = None) -> None:
        """`lanes` are those that the worker asks for, `functions` the names of the durable functions among them."""
        self._lanes = list(lanes)
        self._functions = functions or {}
        self._by_id: dict[str, list[Rule]] = {}
        self._others: list[Rule] = []
        self.any = False
        self.changes: int | None = None
        """The number of changes that led to these rules; None before the first look."""
        self.open: list[int] = self._lanes
        """The lanes to claim from."""
        self.closed: list[int] = []
        """Those of functions that are held back: only what is to be cancelled is claimed from them."""
        self.next_end: dt.datetime | None = None
        """When the first of the rules expires."""
        self.on_change: Callable[[], None] = lambda: None

    def learn(self, changes: int | None, rules: Sequence[Rule], now: dt.datetime) -> None:
        """What a look has found, at this durable time."""
        self._by_id, self._others = {}, []
        for rule in rules:
            if rule.is_over(now):
                continue
            same = (
                self._others if rule.execution_id is None else self._by_id.setdefault(rule.execution_id, [])
            )
            same.append(rule)
        self.any = bool(self._by_id or self._others)
        self.changes = changes
        self.next_end = min((rule.expires_at for rule in rules if rule.expires_at is not None), default=None)
        names = {rule.closes for rule in self._others if rule.closes is not None}
        self.closed = [lane for lane in self._lanes if self._functions.get(lane) in names]
        self.open = [lane for lane in self._lanes if self._functions.get(lane) not in names]
        self.on_change()

    def has_ended(self, now: dt.datetime) -> bool:
        """Whether the time of one of them is over, and it is still there."""
        return self.next_end is not None and self.next_end <= now

    def covering(self, execution_id: str, name: str, step: str | None = None) -> Rule | None:
        """A rule that holds this back: one that names the execution, or else the oldest one."""
        rules = (*self._by_id.get(execution_id, ()), *self._others)
        return next((rule for rule in rules if rule.covers(execution_id, name, step)), None)


NO_RULES: Final = Rules()
"""Where nobody holds anything back."""


class HeldStep(msgspec.Struct, frozen=True, eq=False):
    """A step that waits for the end of a rule."""

    key: Key
    rule: Rule


class Holds:
    """The steps of one activation that wait for the end of a rule."""

    def __init__(self, activation: "Activation") -> None:
        self._activation = activation
        self._held: dict[DurableFuture, HeldStep] = {}

    async def pass_by(self, branch: "Branch", key: Key) -> None:
        """Returns when no rule holds this step back. A body that is parked meanwhile is paused."""
        activation = self._activation
        while (rule := self._covering(key)) is not None:
            future = activation.future()
            self._held[future] = HeldStep(key, rule)
            reach("step.held")
            activation.stir()
            try:
                await branch.parked(future)
            finally:
                del self._held[future]
            activation.busy()

    def reconsider(self) -> None:
        """The rules have changed, or the execution is to be cancelled: let go on what is held back by nothing more."""
        for future, held in list(self._held.items()):
            if self._covering(held.key) is None:
                parking.settle(future)

    def ending(self) -> Paused | None:
        """How an activation ends that is parked now, if a rule is what it waits for."""
        held = next(iter(self._held.values()), None)
        if held is None:
            return None
        return Paused(rule=held.rule.id, waiting_for=f"before {held.key.kind} {held.key}")

    def _covering(self, key: Key) -> Rule | None:
        activation = self._activation
        rules = activation.host.rules
        if not rules.any or activation.cancels.requested is not None:
            return None
        # What is captured is no step to those who name steps.
        step = key.name if key.kind == "step" else None
        return rules.covering(activation.claim.execution_id, activation.spec.name, step)
