"""The same done on both sides, and all tables compared."""

from typing import Any

from tests.model.stage import Stage, expected
from tests.model.world import FINAL, World


class Comparison:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.world = World()
        self.healthy = True
        """Whether the two were equal so far."""
        self.compares = True
        """Whether the tables are compared after each step, not only the answers."""
        stage.reset(self.world)

    def do(self, name: str, *arguments: Any) -> Any:
        """The same on both sides; the answers must be equal."""
        self.healthy = False
        self.stage.did[name] += 1
        told = self.stage.run(getattr(self.stage, name)(*arguments))
        meant = getattr(self.world, name)(*arguments)
        assert told == meant, f"{name}{arguments} answered {told!r}, the model says {meant!r}"
        if self.compares:
            self.compare()
        return told

    def compare(self) -> None:
        self.stage.steps += 1
        self.healthy = False
        found, meant = self.stage.look(), expected(self.world)
        if found != meant:
            raise AssertionError(difference(found, meant))
        for id, number in self.stage.task_ids.items():
            self.world.executions[id].number = number  # sessions draw them in blocks
        for id, execution in found["executions"].items():
            self.always(id, execution, found)
        self.healthy = True

    def always(self, id: str, execution: dict[str, Any], found: dict[str, Any]) -> None:
        """What must hold whatever happened, asked of the tables themselves."""
        task = execution["task"]
        assert (task is None) == (execution["status"] in FINAL), (
            f"{id} has a task, or has none, in {execution}"
        )
        if task is None:
            return
        assert (task["state"] == "running") == (task["owner"] is not None), (
            f"{id} is held by nobody, or idle: {task}"
        )
        news = [wakeup for wakeup in found["wakeups"] if wakeup[:2] == (id, True)]
        if task["state"] == "waiting" and task["started"] is not None and not news:
            now = self.world.now
            pauses = task["before"] is not None and task["before"] > now
            due = task["wake"] is not None and task["wake"] <= now
            live = self.world.executions[id]
            assert live.task is not None
            unseen = set(live.buffered()) - live.task.seen
            assert pauses or due or not unseen, f"{id} is asleep with news that its body never saw: {unseen}"


def difference(found: Any, meant: Any, where: str = "") -> str:
    """Where two nested shapes differ, line by line."""
    if isinstance(found, dict) and isinstance(meant, dict):
        lines = [
            difference(found.get(key), meant.get(key), f"{where}/{key}")
            for key in (*meant, *(key for key in found if key not in meant))
            if found.get(key) != meant.get(key)
        ]
        return "\n".join(lines)
    return f"{where}: the table has {found!r}, the model {meant!r}"
