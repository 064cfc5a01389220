"""Any sequence of what can happen to executions: the tables must go the way of the model, step by step.

A rule does something through the classes that do it in a real program, and then the same to the model. After each rule
all tables are compared with the model, and what must always hold is asked of the tables themselves. At the end of each
example whatever is left must come to its end: nothing is stuck.
"""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.model.comparison import Comparison
from tests.model.stage import Stage
from tests.model.world import FINAL, Event, Execution, Wakeup, World

STEPS = (("one", 1, "step"), ("two", 1, "step"), ("two", 2, "step"), ("nap", 1, "timer"))
MOST_WORKERS, MOST_ALIVE = 3, 4

places = st.integers(0, 23)
flags = st.booleans()
payloads = st.sampled_from((1, 1, 1, 2))
delays = st.sampled_from((0, 0, 0, 60))
names = st.sampled_from(("go", "stop"))
dedups = st.sampled_from((None, "k", "l"))
pauses = st.sampled_from((None, 30, 30, -5))
keys = st.sampled_from(STEPS)


class Machine(Comparison, RuleBasedStateMachine):
    stage: ClassVar[Stage]

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        Comparison.__init__(self, self.stage)
        self.made = 0
        self.pending: tuple[asyncio.Task[Any], Callable[[bool, Any], Any]] | None = None

    # ------------------------------------------------------------ choosing

    def holds(self) -> list[tuple[str, str]]:
        return [
            (worker, id) for worker, its in self.world.workers.items() if not its.stopped for id in its.holds
        ]

    def working(self) -> list[str]:
        return [name for name, worker in self.world.workers.items() if not worker.stopped]

    def hold(self, place: int) -> tuple[str, str]:
        held = self.holds()
        return held[place % len(held)]

    def worker(self, place: int) -> str:
        workers = self.working()
        return workers[place % len(workers)]

    def target(self, place: int) -> str:
        """Mostly one that lives; sometimes one that has ended, or that nobody has started."""
        executions = self.world.executions.items()
        live = [id for id, execution in executions if execution.task is not None]
        ended = [id for id, execution in executions if execution.task is None]
        several = [*live, *live, *live, *ended[-1:], *sorted(self.world.open_ids), "nobody"]
        return several[place % len(several)]

    def id_to_start(self, place: int) -> str:
        live = sum(execution.task is not None for execution in self.world.executions.values())
        if place % 3 == 0 or live >= MOST_ALIVE:
            return self.target(place // 3)
        if self.world.deleted and place % 3 == 1:
            return next(iter(self.world.deleted))
        return self.new_id()

    def new_id(self) -> str:
        self.made += 1
        return f"e{self.made}"

    @property
    def quiet(self) -> bool:
        return self.world.open is None

    # ------------------------------------------------------------ from outside

    @initialize()
    def begin(self) -> None:
        self.enlist()
        self.do("start_many", {self.new_id(), self.new_id()}, 1)
        self.tick(0, 1, suspect=False, watch=False)

    @rule(
        what=st.sampled_from(
            (
                *("start", "start", "start many", "offer", "offer", "offer", "cancel", "resume", "time", "time"),
                *("pause", "pause", "pause all", "unpause", "unpause", "unpause"),
            )
        ),
        place=places, payload=payloads, delay=delays, name=names, dedup=dedups, flag=flags,
    )  # fmt: skip
    def client(
        self,
        *,
        what: str,
        place: int,
        payload: int,
        delay: int,
        name: str,
        dedup: str | None,
        flag: bool,
    ) -> None:
        """What programs and people do, each in a transaction that ends with the statement."""
        world = self.world
        if what == "time":
            self.time_goes_on((1, 31, 100)[place % 3])
            return
        if what.startswith("start"):
            id = self.id_to_start(place)
            if id in world.open_ids or id == "nobody":
                return  # it would wait for the open transaction
            if what == "start":
                self.do("start", id, payload, delay, "return" if flag else "raise")
            else:
                self.do("start_many", {id, self.new_id()}, payload)
            return
        id = self.target(place)
        if what == "offer":
            if dedup is None or (id, dedup) not in world.open_keys:
                self.do("offer", id, name, dedup)
            elif self.pending is None:
                self.wait_for_key(id, name, dedup)
        elif what.startswith("pause"):
            self.made += 1
            of = id if what == "pause" else None
            self.do("pause", f"r{self.made}", of, flag and place % 3 == 0, (None, 20, 60)[place % 3])
        elif what == "unpause":
            rules = [*world.rules, "none"]
            self.do("unpause", rules[place % len(rules)])
        elif what == "cancel":
            self.made += 1
            self.do("cancel", id, f"reason {self.made}", flag and place % 2 == 0)
        else:
            blocked = [id for id in world.executions if (task := world.task(id)) and task.state == "blocked"]
            self.do("resume", blocked[0] if blocked else id, flag)

    @rule(
        what=st.sampled_from(("retry", "retry", "retry", "restart", "restart", "rerun", "delete")),
        place=places, key=keys, payload=st.sampled_from((None, 1, 2)), flag=flags,
    )  # fmt: skip
    def repair(self, *, what: str, place: int, key: Any, payload: int | None, flag: bool) -> None:
        """What somebody does when something went wrong: mostly to what has failed, or has failed records."""
        id = self.target(place)
        executions = self.world.executions
        if what == "delete":
            ended = [id for id, execution in executions.items() if execution.task is None]
            if self.quiet:  # an event that an open transaction holds would be nobody's
                self.do("delete", ended[place % len(ended)] if ended and flag else id)
        elif what == "restart":
            self.do("restart", id, payload)
        else:
            wanted = ("failed",) if what == "retry" else FINAL
            found = [
                (id, key)
                for id, execution in executions.items()
                for key, record in execution.records.items()
                if record.state in wanted and key in STEPS
            ]
            if found and (flag or place % 2):
                id, key = found[place % len(found)]
            self.do("retry_step" if what == "retry" else "rerun", id, key)

    def time_goes_on(self, by: int) -> None:
        self.world.now += by
        self.stage.run(self.stage.move(self.world.now))
        self.compare()

    # ------------------------------------------------------------ from SQL, in a transaction or not

    @rule(
        what=st.sampled_from(("begin", "start", "offer", "offer", "cancel", "end", "end")),
        place=places, payload=payloads, delay=delays, name=names, dedup=dedups, flag=flags,
    )  # fmt: skip
    def sql(
        self,
        *,
        what: str,
        place: int,
        payload: int,
        delay: int,
        name: str,
        dedup: str | None,
        flag: bool,
    ) -> None:
        """The functions for SQL, on one connection whose transaction may stay open while the others go on."""
        if what == "begin" and self.quiet:
            self.world.open = []
            self.stage.run(self.stage.user.execute("BEGIN"))
        elif what == "start":
            self.sql_start(self.id_to_start(place), payload, delay)
        elif what == "offer":
            self.sql_offer(self.target(place), name, dedup)
        elif what == "cancel":
            self.sql_cancel(self.target(place))
        elif what == "end" and not self.quiet:
            self.finish_transaction(committed=flag or place % 2 == 0)
            self.compare()

    def sql_start(self, id: str, payload: int, delay: int) -> None:
        world = self.world
        due = world.now + delay
        if id == "nobody":
            return

        def keep() -> None:
            number = world.number()
            world.open_ids.add(id)

            def effect(seen: World) -> None:
                seen.insert(id, number, payload, due, waits=delay > 0)

            assert world.open is not None
            world.open.append(effect)

        self.in_transaction("sql_start", (id, payload, delay), keep, told="created")

    def sql_offer(self, id: str, name: str, dedup: str | None) -> None:
        world = self.world
        if self.pending is not None and dedup is not None:
            return

        def keep() -> None:
            event, wakeup = world.number(), world.number()
            task = world.view().executions[id].last
            if dedup is not None:
                world.open_keys.add((id, dedup))

            def effect(seen: World) -> None:
                insert_event(seen, id, Event(event, name, dedup))
                insert_wakeup(seen, Wakeup(wakeup, id, "event", task=task))

            assert world.open is not None
            world.open.append(effect)

        self.in_transaction("sql_offer", (id, name, dedup), keep, told=True)
        if self.pending is None and (id, dedup) in world.open_keys:
            self.wait_for_key(id, name, dedup)

    def sql_cancel(self, id: str) -> None:
        world = self.world
        self.made += 1
        reason = f"reason {self.made}"

        def keep() -> None:
            number = world.number()
            task = world.view().executions[id].last

            def effect(seen: World) -> None:
                insert_wakeup(seen, Wakeup(number, id, "cancel", reason, task))
                seen.executions[id].notes["cancel requested"] += 1

            assert world.open is not None
            world.open.append(effect)

        self.in_transaction("sql_cancel", (id, reason), keep, told=True)

    def in_transaction(
        self, name: str, arguments: tuple[Any, ...], keep: Callable[[], None], *, told: Any
    ) -> None:
        """Sends it on the user's connection; `keep` notes what a commit will do if a transaction is open there."""
        if self.world.open is None:
            self.do(name, *arguments)
            return
        self.stage.did[f"{name} in a transaction"] += 1
        meant = getattr(self.world.view(), name)(*arguments)
        answer = self.stage.run(getattr(self.stage, name)(*arguments))
        assert answer == meant, f"{name}{arguments} answered {answer!r}, the model says {meant!r}"
        if answer == told:
            keep()
        self.compare()

    def finish_transaction(self, *, committed: bool) -> None:
        self.stage.run(self.stage.user.execute("COMMIT" if committed else "ROLLBACK"))
        if committed:
            self.world.commit()
        else:
            self.world.roll_back()
        if self.pending is not None:
            (task, model), self.pending = self.pending, None
            answer = self.stage.run(wait(task))
            meant = model(committed, answer)
            assert answer == meant, f"the event that waited answered {answer!r}, the model says {meant!r}"

    def wait_for_key(self, id: str, name: str, dedup: str | None) -> None:
        """An event of a key that an open transaction may commit waits for it, and nobody else waits for the event."""
        world, stage = self.world, self.stage
        if id not in world.executions or world.executions[id].task is None:
            return
        stage.desk = stage.desks[1]
        task = stage.runner.get_loop().create_task(stage.offer(id, name, dedup))
        stage.run(stage.until_waiting(task))
        stage.desk = stage.desks[0]

        def meant(committed: bool, answer: Any) -> bool | str:
            if answer == "finished" and world.task(id) is None:
                return "finished"  # it ended meanwhile, and the next try heard of it
            if committed:
                return False
            # Its place is that of the try which passed: it is sent again and again while it waits.
            place = stage.run(stage.place_of(id, dedup))
            around = [0, *(event.number for event in world.executions[id].events), world.number()]
            insert_event(world, id, Event((around[place] + around[place + 1]) / 2, name, dedup))
            world._wake(id)
            return True

        self.pending = task, meant
        self.compare()
        for worker, held in self.holds():
            if held == id:  # its worker must not have to wait as well
                self.do("together", worker, [("suspend", (id, world.now + 30))])
                return

    # ------------------------------------------------------------ workers

    def enlist(self) -> None:
        self.made += 1
        self.do("register", f"w{self.made}")

    @precondition(lambda self: self.working())
    @rule(place=places, limit=st.sampled_from((3, 2, 1, 0)), suspect=flags, watch=flags)
    def tick(self, place: int, limit: int, suspect: bool, watch: bool) -> None:
        worker = self.worker(place)
        if not self.holds() and not any(map(self.is_ready, self.world.executions)):
            self.do("start_many", {self.new_id(), self.new_id()}, 1)
        self.look(worker, limit, suspect=suspect, watch=watch)

    def is_ready(self, id: str) -> bool:
        task = self.world.task(id)
        return task is not None and task.state == "ready"

    def look(self, worker: str, limit: int, *, suspect: bool, watch: bool) -> None:
        watched = list(self.world.workers[worker].holds) if watch else []
        told = self.do("tick", worker, limit, suspect, watched)
        if told["fenced"]:
            self.world.workers[worker].stopped = True

    @rule(
        what=st.sampled_from(("look", "look", "look", "enlist", "die", "die", "beat", "reap", "leave")),
        place=places,
        flag=flags,
    )
    def worker_does(self, what: str, place: int, flag: bool) -> None:
        """Workers come, look for work, stop answering, go."""
        if what == "enlist" or not self.working():
            if len(self.working()) < MOST_WORKERS:
                self.enlist()
        elif what == "look":
            self.tick(place, 2, suspect=True, watch=True)
        elif what == "die" and self.holds():
            worker, _ = self.hold(place)
            self.expire(worker)
            if flag:
                self.do("reap")
                self.write(place, [("record", (STEPS[place % 4], "completed"))])  # too late
        elif what == "beat":
            worker = self.worker(place)
            assert self.stage.beat(worker) == self.world.workers[worker].registered
            self.world.workers[worker].expired = False
        elif what == "leave" and len(self.working()) > 1:
            self.leave(self.worker(place), release=flag)
        elif what == "reap":
            self.do("reap")

    def expire(self, worker: str) -> None:
        """It is not heard of any more; what it sends once somebody has reaped it comes too late."""
        self.stage.run(self.stage.expire(worker))
        self.world.workers[worker].expired = True

    def leave(self, worker: str, *, release: bool) -> None:
        """A shutdown: what it holds is released, or left for others to find."""
        its = self.world.workers[worker]
        if release and its.registered and its.holds:
            self.do("together", worker, [("release", (id,)) for id in its.holds])
        self.do("leave", worker)
        its.stopped = True

    # ------------------------------------------------------------ what a worker writes

    @precondition(lambda self: self.holds())
    @rule(place=places, key=keys, state=st.sampled_from(("completed", "failed", "running", "failed attempt")))
    def record(self, place: int, key: Any, state: str) -> None:
        self.write(place, [("record", (key, state))])

    @precondition(lambda self: self.holds())
    @rule(place=places, twice=st.sampled_from((False, False, True)))
    def consume(self, place: int, twice: bool) -> None:
        """The next event that it knows, or hears of now; a second time must be refused."""
        worker, id = self.hold(place)
        if not self.unused(worker, id):
            self.do("offer", id, "go", None)
            self.look(worker, 0, suspect=False, watch=True)
        for number in self.unused(worker, id)[:1] * (1 + twice):
            if id in self.world.workers[worker].holds:
                self.made += 1
                self.do("together", worker, [("consume", (id, number, self.made))])

    def unused(self, worker: str, id: str) -> list[float]:
        """The events that a hold knows of and that no wait has consumed."""
        hold, execution = self.world.workers[worker].holds.get(id), self.world.executions.get(id)
        if hold is None or execution is None:
            return []
        return [number for number in hold.known if number in execution.buffered()]

    @precondition(lambda self: self.holds())
    @rule(
        what=st.sampled_from(
            (
                *("suspend", "suspend", "suspend", "end", "retry", "retry", "meet", "meet", "block", "release"),
                *("park", "park"),
            )
        ),
        place=places, pause=pauses, status=st.sampled_from(FINAL), key=st.sampled_from((None, *STEPS)), flag=flags,
    )  # fmt: skip
    def end(self, *, what: str, place: int, pause: int | None, status: str, key: Any, flag: bool) -> None:
        """What ends a hold, alone or in one batch with a record."""
        _, id = self.hold(place)
        before = [("record", (key, "waiting" if what == "suspend" else "running"))] if key is not None else []
        if what == "suspend":
            if flag:  # news that it has not heard of
                self.do("offer", id, "stop", None)
            self.write(place, [*before, ("suspend", (None if pause is None else self.world.now + pause,))])
        elif what == "end":
            self.write(place, [*before, ("end", (status,))])
        elif what == "retry":
            worker, id = self.hold(place)
            hold = self.world.workers[worker].holds[id]
            failed = [key for key, record in hold.run.records.items() if record.state == "failed"]
            self.write(place, [("retry", (30 if flag else 0, failed))])
        elif what == "park":
            rules = [*self.world.rules, *self.world.rules, "none"]
            self.write(place, [*before, ("park", (rules[place % len(rules)],))])
        elif what == "meet":
            worker, id = self.hold(place)
            hold = self.world.workers[worker].holds[id]
            again = [key for key in hold.repair if key in hold.run.records]
            self.write(place, [("retry", (0, again, True))])
        else:
            self.write(place, [*before, (what, ())])

    @precondition(lambda self: self.holds())
    @rule(place=places, pause=pauses, key=keys)
    def everybody(self, place: int, pause: int | None, key: Any) -> None:
        """One batch for all that a worker holds: some record, some end, some are parked."""
        worker, _ = self.hold(place)
        batch: list[tuple[str, tuple[Any, ...]]] = []
        for turn, id in enumerate(self.world.workers[worker].holds):
            if turn % 2:
                batch.append(("record", (id, key, "completed")))
            if turn % 3 == 0:
                batch.append(("suspend", (id, None if pause is None else self.world.now + pause)))
            elif turn % 3 == 1:
                batch.append(("end", (id, "completed")))
        self.do("together", worker, batch)

    @precondition(lambda self: self.holds() and len(self.working()) > 1)
    @rule(place=places)
    def gone_on(self, place: int) -> None:
        """The answer to a suspension is lost, and when it is sent again the body is in its next attempt elsewhere."""
        worker, id = self.hold(place)
        other = next(name for name in self.working() if name != worker)
        nap = ("nap", 1, "timer")
        self.do("together", worker, [("record", (id, nap, "waiting")), ("suspend", (id, self.world.now - 5))])
        self.look(other, 10, suspect=True, watch=True)
        if id in self.world.workers[other].holds and self.world.workers[worker].registered:
            self.do("together", other, [("record", (id, nap, "failed"))])
            failed = self.world.workers[other].holds[id].run.records[nap].state == "failed"
            self.do("together", other, [("retry", (id, 30, [nap] if failed else []))])
            self.stage.run(self.stage.again(worker))
            self.compare()

    def write(self, place: int, operations: list[tuple[str, tuple[Any, ...]]]) -> None:
        worker, id = self.hold(place)
        self.stage.did[operations[-1][0]] += 1
        self.do("together", worker, [(name, (id, *arguments)) for name, arguments in operations])

    @precondition(lambda self: any(hand.sent is not None for hand in self.stage.hands.values()))
    @rule(place=places)
    def again(self, place: int) -> None:
        """The answer to the last batch was lost: it is sent once more, and changes nothing."""
        workers = [name for name in self.working() if self.stage.hands[name].sent is not None]
        worker = workers[place % len(workers)] if workers else None
        if worker is not None and self.world.workers[worker].registered:
            self.stage.did["again"] += 1
            self.stage.run(self.stage.again(worker))
            self.compare()

    # ------------------------------------------------------------ the end

    def teardown(self) -> None:
        """Everything that is left comes to its end, by one worker who comes anew."""
        try:
            if self.healthy:
                self.finish_everything()
        finally:
            if self.pending is not None:
                self.pending[0].cancel()

    def finish_everything(self) -> None:
        if not self.quiet:
            self.finish_transaction(committed=True)
        for worker in self.working():
            self.expire(worker)
        self.do("reap")
        for name in list(self.world.rules):
            self.do("unpause", name)
        self.enlist()
        worker = self.working()[-1]
        for turn in range(60):
            if not any(execution.task for execution in self.world.executions.values()):
                return
            self.do("tick", worker, 10, True, [])
            for id, hold in list(self.world.workers[worker].holds.items()):
                if hold.repair:
                    again = [key for key in hold.repair if key in hold.run.records]
                    self.do("together", worker, [("retry", (id, 0, again, True))])
                else:
                    self.do("together", worker, [("end", (id, "completed"))])
            self.world.now += 50
            self.stage.run(self.stage.move(self.world.now))
            for id, execution in self.world.executions.items():
                if execution.task is not None and turn > 10:
                    # Parked without a time, or blocked: only news or a person can end it.
                    self.do(
                        "cancel" if execution.task.state == "blocked" else "offer",
                        id,
                        *self.last_words(execution),
                    )
        raise AssertionError(f"never ended: {self.stage.look()}")

    def last_words(self, execution: Execution) -> tuple[Any, ...]:
        assert execution.task is not None
        return ("over", False) if execution.task.state == "blocked" else ("go", None)


def insert_event(world: World, id: str, event: Event) -> None:
    events = world.executions[id].events
    events.append(event)
    events.sort(key=lambda each: each.number)


def insert_wakeup(world: World, wakeup: Wakeup) -> None:
    world.wakeups.append(wakeup)
    world.wakeups.sort(key=lambda each: each.number)


async def wait(task: "asyncio.Task[Any]") -> Any:
    return await task
