"""The steps that an activation runs: they run inline, in the task that called them.

How one call comes to its record is in `plain_steps` and `step_calls`, how one attempt runs in `step_attempts`. Here is
what they share: how many may run at a time, which of them run now, and what is shown of those that run for long. A step
that has run for a second gets a `running` record, and one that tells its progress does, too; any other never pays for
that.
"""

import asyncio
import contextlib
import datetime as dt
from collections import deque
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any, Final

from zart._engine.branch import Branch
from zart._engine.entries import Entry, Key
from zart._engine.plain_steps import run_plain
from zart._engine.points import reach
from zart._engine.sagas import Undos
from zart._engine.step_attempts import Running
from zart._engine.step_calls import StepRun
from zart.calls import StepCall
from zart.context import place
from zart.errors import Suspended

if TYPE_CHECKING:
    from zart._engine.activation import Activation

NOTICED_AFTER: Final = dt.timedelta(seconds=1)
"""A step that runs for longer is shown as running."""
_PROGRESS_EVERY: Final = 1.0
"""Seconds between two records of a step's progress."""


class Steps:
    """See the module."""

    __slots__ = ("_activation", "_free", "_not_to_be_interrupted", "_queue", "running", "tasks")

    def __init__(self, activation: "Activation") -> None:
        self._activation = activation
        self._free = activation.host.max_inflight_steps
        self._queue: deque[asyncio.Future[None]] | None = None
        """Those who wait for room, if anybody ever has."""
        self._not_to_be_interrupted: set[Running] = set()
        self.running: dict[Key, Running] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        """The tasks that are in a step now."""

    def run(
        self,
        branch: Branch,
        key: Key,
        call: StepCall,
        digest: bytes | None,
        preview: str | None,
        *,
        within: tuple[Undos, ...] = (),
        undoes: Undos | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Run a step that has no record, with all its attempts; returns or raises what is recorded then.

        `within` are the sagas that it was called in; `undoes` is the one that it undoes, if it does.
        """
        return StepRun(
            self, branch, key, call, digest=digest, preview=preview, within=within, undoes=undoes
        ).run()

    def run_plain(self, branch: Branch, key: Key, call: StepCall) -> Coroutine[Any, Any, Any]:
        """The same for a plain step in no saga, whether it has a record or not."""
        return run_plain(self, branch, key, call)

    @property
    def may_be_interrupted(self) -> bool:
        """Whether none of them runs that would be lost if it were given up now."""
        return not self._not_to_be_interrupted

    # ------------------------------------------------------------ which of them run

    @contextlib.contextmanager
    def in_step(self) -> Generator[None, None, None]:
        """The task does something for a step, outside of its function: it is not at rest, and no longer in a body."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (a coroutine always runs in one)
        self.tasks.add(task)
        token = place.set(None)
        try:
            yield
        except asyncio.CancelledError:
            if self._activation.closed:
                raise Suspended from None
            raise
        finally:
            place.reset(token)
            self.tasks.discard(task)

    @contextlib.contextmanager
    def not_to_be_interrupted(self, step: Running) -> Generator[None, None, None]:
        """A shutdown waits for a step that runs at most once."""
        self._not_to_be_interrupted.add(step)
        try:
            yield
        finally:
            self._not_to_be_interrupted.discard(step)

    def take_slot(self) -> bool:
        """Whether there is room for one more: at most so many live steps of one execution at a time."""
        if self._free > 0 and not self._queue:
            self._free -= 1
            return True
        return False

    async def slot(self, branch: Branch) -> None:
        """Wait for room: first come, first served."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._queue is None:
            self._queue = deque()
        self._queue.append(turn)
        try:
            await branch.parked(turn)
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    # ------------------------------------------------------------ what is shown of them

    def show_long(self, now: dt.datetime) -> None:
        """Write a `running` record for each attempt that has run for a second."""
        for step in self.running.values():
            if not step.shown and now - step.started_at >= NOTICED_AFTER:
                self._show(step)
                reach("step.shown")

    def progressed(self, step: Running) -> None:
        """A step has told its progress, on whatever thread."""
        with contextlib.suppress(
            RuntimeError
        ):  # the loop may be closed by then: nobody is interested any more
            self._activation.loop.call_soon_threadsafe(self._tell, step)

    def _tell(self, step: Running) -> None:
        if step.telling:
            step.untold = True
        elif not step.over and not self._activation.closed:
            step.telling = True
            step.untold = False
            self._activation.loop.call_later(
                _PROGRESS_EVERY, self._tell_again, step, context=self._activation.host.base_context
            )
            self._show(step)
            reach("step.progressed")

    def _tell_again(self, step: Running) -> None:
        step.telling = False
        if step.untold:
            self._tell(step)

    def _show(self, step: Running) -> None:
        step.shown = True
        self._activation.write(
            Entry(
                run_id=self._activation.claim.run_id,
                key=step.key,
                state="started" if step.at_most_once else "running",
                done=None,
                attempts=step.attempt,
                started_at=step.first_started_at,
                progress=step.inside.progress,
            )
        )
