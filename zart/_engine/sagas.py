"""Sagas of one activation: what is to be undone when a block of a body fails, and the undoing.

An undo is a step of the branch that has opened the saga, called when it is the undo's turn: it is asked for at the log,
its arguments are compared, it is recorded, replayed and suspended like any other. What is different:

    before the first    the branches, scheduled steps and children that were begun within the saga are cancelled, and
                        have ended; and the threads of its plain functions, which cannot be cut, have returned. So no
                        act overlaps its undo.
    while they run      they have a task of their own, which nobody cancels. A cancel that comes meanwhile is kept for
                        whoever has begun the undoing, and raised after the last undo.
    one fails for good  it has no final record. The attempts made are kept as attempts, and the execution is blocked,
                        even one that is being cancelled. After `resume` a replay comes to the same undo, and tries it
                        anew, with all its retries.

Nothing is undone by a suspension: the block is not over then.

A saga that is opened within another belongs to it. When its block ends well, what it has registered stays with the
outer one, which undoes it, should it fail later.

**The body is run again** (`max_retries`) after an exception that has left a saga. The steps called within were undone,
so they are set aside together with their undos, and the next attempt runs them afresh, each with another idempotency
key: under the old one the other side has done and undone it. That such a saga was undone is an entry of the log, its
*mark*, under a path of its own; a saga counts its marks when it is opened.

So is a saga that was undone by a cancel, or by a call outside of any `except`, after the failure had been delivered: a
sibling that the failure took along. Once the failed step works, nothing would undo it again. What was undone before
that is not its consequence, and neither is a saga whose exception the body has caught, whenever that was: acts, failure
and undos, all of it is replayed, and the body comes to the same point.
"""

import asyncio
import sys
from collections.abc import Coroutine, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn

import anyio
import msgspec

from zart._engine.entries import Blocked, FailedAttempt, Key, Record
from zart._engine.points import reach
from zart._engine.step_waits import attend
from zart.calls import StepCall
from zart.errors import Suspended, UsageError
from zart.failures import exception_to_json

if TYPE_CHECKING:
    from zart._engine.activation import Activation
    from zart._engine.branch import Branch
    from zart._engine.delegated import Pending

_open: ContextVar[tuple["Undos", ...]] = ContextVar("zart_sagas", default=())
"""The sagas that the running code stands in, the outermost first. A task starts with those of its starter."""

_END_OF_PROCESS = (GeneratorExit, KeyboardInterrupt, SystemExit)


def around() -> tuple["Undos", ...]:
    """The sagas that the running code stands in."""
    return _open.get()


def note(within: tuple["Undos", ...], key: Key, record: Record | None = None) -> None:
    """A step that was called within these sagas runs, or has this record."""
    for undos in within:
        undos.called[key] = record


def marks(within: tuple["Undos", ...]) -> str:
    """How often these sagas were forgotten, as a text that is empty if none ever was."""
    return ",".join(str(undos.marks) for undos in within) if any(undos.marks for undos in within) else ""


def _is_failure(error: BaseException) -> bool:
    """Whether a block that this has left has failed. Not when the body only goes on elsewhere, or the process ends."""
    if isinstance(error, Exception):
        return True
    unwinds = type(error).__module__ == Suspended.__module__
    return not unwinds and not isinstance(error, _END_OF_PROCESS)


class Undo(msgspec.Struct, eq=False):
    """A step that was registered."""

    call: StepCall
    done: bool = False


class Sagas:
    """All sagas of an activation, and which of its tasks were started within them."""

    def __init__(self, activation: "Activation") -> None:
        self.activation = activation
        self.undoing: dict[asyncio.Task[Any], Undos] = {}
        """The tasks that undo something: they are not cancelled with others."""
        self._started: dict[asyncio.Task[Any], tuple[tuple[Undos, ...], asyncio.Task[Any] | None]] = {}
        self._left: list[tuple[BaseException, Undos]] = []
        self._undone: list[Undos] = []

    def open(self, branch: "Branch") -> "Undos":
        undos = Undos(self, branch, _open.get())
        _open.set(undos.within)
        return undos

    # ------------------------------------------------------------ tasks

    def started(self, task: "asyncio.Task[Any]") -> None:
        """The running code has started a task of the body."""
        within = _open.get()
        if within:
            self._started[task] = (within, asyncio.current_task())

    def ended(self, task: "asyncio.Task[Any]") -> None:
        self._started.pop(task, None)
        self.undoing.pop(task, None)

    def cancel(self, task: "asyncio.Task[Any]") -> None:
        """Cancel a branch, but not what undoes."""
        if task not in self.undoing:
            task.cancel()

    def line_of(self, task: "asyncio.Task[Any] | None") -> "set[asyncio.Task[Any]]":
        """A task, who has started it, and so on."""
        line = set[asyncio.Task[Any]]()
        while task is not None and task not in line:
            line.add(task)
            _, task = self._started.get(task, ((), None))
        return line

    def branches(self, undos: "Undos", spared: "set[asyncio.Task[Any]]") -> "Iterator[asyncio.Task[Any]]":
        """The tasks started within a saga, without those `spared`, and without those that wait for one of these."""
        for task, (within, _) in self._started.items():
            if undos not in within or task in spared:
                continue
            other = self.undoing.get(task)
            if other is None or (other is not undos and other.awaited.isdisjoint(spared)):
                yield task

    # ------------------------------------------------------------ failures of the body

    def left(self, undos: "Undos", error: BaseException) -> None:
        """An exception has left the block of a saga that is undone."""
        self._left.append((error, undos))

    def undone(self, undos: "Undos") -> None:
        """A saga begins to be undone."""
        self._undone.append(undos)

    def forgotten(self, errors: Iterable[BaseException], since: int) -> "list[Undos]":
        """The sagas that a further attempt of the body does not keep: left by one of `errors`, or taken along.

        `since` is the number of the first entry behind these errors; 0 when there is none.
        """
        ids = {id(error) for error in errors}
        left = {undos for error, undos in self._left if id(error) in ids}
        return [
            undos
            for undos in self._undone
            if undos in left or (undos.taken_along and undos.undone_at >= since)
        ]


class Undos:
    """The engine's side of `zart.Saga`: see `zart.context.Undos`, and the module."""

    def __init__(self, sagas: Sagas, branch: "Branch", around: "tuple[Undos, ...]") -> None:
        self._sagas = sagas
        self._activation = sagas.activation
        self._branch = branch
        self._around = around
        self.within = (*around, self)
        self._path = branch.path_of_saga()
        self._entered = False
        self._over = False
        self._undone = False
        self._registered: list[Undo | Undos] = []
        self._task: asyncio.Task[None] | None = None
        self.taken_along = False
        """It is undone, and not since something was raised in its block."""
        self.undone_at = 0
        """The number of the last entry that the body had heard of when the undoing began."""
        self.awaited: set[asyncio.Task[Any]] = set()
        """The branches whose end the undoing waits for."""
        self.called: dict[Key, Record | None] = {}
        """The steps that were called within, and have run or are recorded."""
        self.given: list[Pending] = []
        """Scheduled steps and children that were begun within."""
        self.threads: set[asyncio.Future[None]] = set()
        """Of the plain functions within; each is done when its thread has returned."""
        self.marks = self._count_marks()
        """How often the body was run again after this saga was undone."""

    # ------------------------------------------------------------ the block

    def add(self, call: StepCall, /) -> None:
        if self._over or self._undone:
            raise UsageError(
                f"execution {self._activation.claim.execution_id!r}: the undo {call.name!r} is added to a saga that "
                f"{'was undone' if self._undone else 'has ended'}, so nobody would run it; open another one"
            )
        self._registered.append(Undo(call))

    def enter(self) -> None:
        if self._entered or self._over or self._undone:
            raise UsageError(
                f"execution {self._activation.claim.execution_id!r}: a saga is for one block, and this one has had it; "
                "open another one: async with zart.saga() as saga"
            )
        self._entered = True

    async def leave(self, error: BaseException | None, /) -> None:
        try:
            if error is None:
                self._hand_over()
            elif not self._activation.closed and _is_failure(error):
                await self._compensate(error)
        finally:
            self._over = True
            _open.set(tuple(undos for undos in _open.get() if undos is not self))

    def compensate(self) -> Coroutine[Any, Any, None]:
        return self._compensate(sys.exception())

    def _hand_over(self) -> None:
        """The block ended well: its undos are now those of the saga around it too, if there is one.

        One without a block may lie in between, and may be undone or be forgotten: then both have them.
        """
        for outer in reversed(self._around):
            if not outer._over and not outer._undone:  # noqa: SLF001
                outer._registered.append(self)  # noqa: SLF001
                if outer._entered:  # noqa: SLF001
                    return

    def registered(self) -> Iterator[Undo]:
        """All undos, in the order in which they run."""
        for entry in reversed(self._registered):
            if isinstance(entry, Undo):
                yield entry
            else:
                yield from entry.registered()

    # ------------------------------------------------------------ undoing

    async def _compensate(self, error: BaseException | None) -> None:
        """Undo everything once, and wait until that is done. `error` is why."""
        activation = self._activation
        if activation.closed:
            await activation.unwinding.refuse_call(Key(self._path, "compensate", 1, "step"))
        if error is not None:
            self._sagas.left(self, error)
        begins = self._task is None
        if self._task is None:
            self.taken_along = not isinstance(error, Exception)
            self.undone_at = activation.heard
            self._sagas.undone(self)
            line = self._sagas.line_of(asyncio.current_task())
            self._task = asyncio.get_running_loop().create_task(self._undo(line))
            self._sagas.undoing[self._task] = self
        elif asyncio.current_task() in self.awaited:
            return  # the undoing waits for this branch
        cancelled = await self._until_undone(self._task, keeps_cancels=begins)
        if cancelled is not None:
            self._sagas.left(self, cancelled)
            raise cancelled

    async def _until_undone(
        self, task: "asyncio.Task[None]", *, keeps_cancels: bool
    ) -> asyncio.CancelledError | None:
        """Wait for the end of the undoing; the cancel that came meanwhile, if one was kept."""
        cancelled: asyncio.CancelledError | None = None
        # A scope of anyio that is cancelled cancels again in each turn of the loop, so that the body would never rest.
        with anyio.CancelScope(shield=keeps_cancels):
            while not task.done():
                try:
                    await asyncio.wait([task])
                except asyncio.CancelledError as cancel:
                    if self._activation.closed:
                        raise Suspended from None
                    if not keeps_cancels:
                        raise
                    cancelled = cancel
        await task  # done: it is unwound if the body is
        return cancelled

    async def _undo(self, line: "set[asyncio.Task[Any]]") -> None:
        try:
            _open.set(self.within)
            await self._end_branches(line)
            await self._end_given()
            if running := [thread for thread in self.threads if not thread.done()]:
                await attend(self._activation, asyncio.wait(running))
            self._undone = True
            reach("saga.undoing")
            for undo in list(self.registered()):
                if not undo.done:
                    await self._branch.undo(undo.call, self)
                    undo.done = True
            reach("saga.undone")
        except asyncio.CancelledError:
            if self._activation.closed:
                raise Suspended from None
            raise

    async def _end_branches(self, spared: "set[asyncio.Task[Any]]") -> None:
        """Cancel what was started within, and wait for its end: also for what it starts to clean up."""
        while branches := list(self._sagas.branches(self, spared)):
            for task in branches:
                if task not in self.awaited:
                    self._sagas.cancel(task)
            self.awaited = set(branches)
            await asyncio.wait(branches)
        self.awaited = set()

    async def _end_given(self) -> None:
        """Cancel what was given away within, and wait until that has ended wherever it runs."""
        given = [pending for pending in self.given if not pending.over]
        for pending in given:
            await self._activation.delegated.cancel(self._branch, pending)
        if given:
            await self._activation.delegated.join(self._branch, given, every=True)

    def give_up(self, attempt: FailedAttempt, error: Exception) -> NoReturn:
        """An undo has failed for good: nothing goes on before somebody has looked at it."""
        activation = self._activation
        told = self._told(attempt, error)
        failure = exception_to_json(error, step=str(attempt.key), attempts=attempt.attempt, message=told)
        activation.end(Blocked(failure=failure, what="an undo failed", failed_undo=attempt))
        raise Suspended

    def _told(self, attempt: FailedAttempt, error: Exception) -> str:
        undone = [undo.call.name for undo in self.registered() if undo.done]
        every = (
            undo for saga in (self, *reversed(self._around)) for undo in saga.registered() if not undo.done
        )
        failed, *left = [undo.call.name for undo in dict.fromkeys(every)]
        return (
            f"{error}; undone: {', '.join(undone) or 'nothing'}; not undone: "
            f"{', '.join([f'{failed} (failed)', *left])}; after a resume it goes on with {attempt.key}"
        )

    # ------------------------------------------------------------ when the body is run again

    def _count_marks(self) -> int:
        log, floor = self._activation.log, self._activation.claim.floor
        number = 0
        while (mark := log.ask(self._mark(number + 1))) is not None and (mark.seq or 0) <= floor:
            number += 1
        return number

    def _mark(self, number: int) -> Key:
        return Key(self._path, "undone", number, "capture")

    @property
    def next_mark(self) -> Key:
        """What is written when the body is run again after this saga was undone."""
        return self._mark(self.marks + 1)
