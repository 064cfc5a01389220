"""Steps with `transaction="own"`: their record is part of a transaction that is not Zart's.

The same serves a scheduled step with `transaction=True`: its end is written by the ending of its own task.

The step calls `zart_record_step` as the last statement of its transaction, which puts the result beside the journal
(see the migration). When its function has returned or raised, the attempt is *ended*: from then on it can record
nothing any more, unless it has, and then what it has recorded counts, whatever the function says. The next attempt, and
the next worker, look before they run the function: what was committed is never done again.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from psycopg import errors

from zart._engine.columns import key_values
from zart._engine.decrypting import set_aside
from zart._engine.entries import Claim, Entry, Key, Lost
from zart._engine.points import reach
from zart._engine.transactions import Connected, Transaction
from zart.encryption import Place
from zart.errors import PayloadUnreadable, Suspended, UsageError

if TYPE_CHECKING:
    from zart._engine.activation import Activation

_log = logging.getLogger("zart.worker")

Verdict = Callable[[Entry, Exception | None], None]

_PATIENCE: Final = "1s"
"""How long the end of an attempt waits for its open transaction."""


class OwnRecord:
    """What one call of such a step has recorded."""

    def __init__(self, transactions: Connected, activation: "Activation", key: Key) -> None:
        self._transactions = transactions
        self._activation = activation
        self._key = key

    @property
    def _claim(self) -> Claim:
        """The present one: a body that is kept in memory goes on under another."""
        return self._activation.claim

    async def before(self, attempt: int) -> bytes | None:
        """What an earlier attempt has recorded, however long its transaction stays open. Raises Lost."""
        if attempt == 1 and self._claim.epoch == 1:
            return None
        while True:
            try:
                return await self._end(attempt - 1)
            except errors.LockNotAvailable:
                _log.warning(
                    "execution %s: step %s waits for the open transaction of an earlier attempt",
                    self._claim.execution_id,
                    self._key,
                )

    async def commit(self, transaction: Transaction, attempt: int, result: bytes) -> None:
        """Record this as the last statement of a transaction, and commit. Raises what `Transaction.commit` does."""

        async def was_committed() -> bool:
            return await self._end(attempt) is not None

        parameters = {**self._parameters(), "epoch": self._claim.epoch, "attempt": attempt}
        await transaction.commit_beside(parameters, result, self._place, self._key, was_committed)
        self._transactions.confirmed.apart(self._claim.run_id, self._key)

    async def after(self, attempt: int) -> bytes | None:
        """What this attempt has recorded. Raises Lost, and UsageError when its transaction is still open."""
        try:
            return await self._end(attempt)
        except errors.LockNotAvailable:
            raise UsageError(
                f"{self._step(attempt)} has returned, and the transaction in which it called zart_record_step is not "
                "committed: commit it before the step returns"
            ) from None

    def not_called(self, attempt: int) -> UsageError:
        return UsageError(
            f"{self._step(attempt)} has returned, and zart_record_step was not called with its token, or that "
            "transaction was rolled back: execute SELECT zart_record_step(token, result) as the last statement of the "
            "step's transaction, with zart.step_context().token, and commit"
        )

    def forgetting(self, told: Verdict | None) -> Verdict:
        """Told of the commit of what came of it, in front of whom else to tell; after that the journal has it."""

        def done(entry: Entry, error: Exception | None) -> None:
            if told is not None:
                told(entry, error)
            if error is None:
                self._transactions.later("forget_own", self._parameters())

        return done

    async def _end(self, attempt: int) -> bytes | None:
        reach("own.ending")
        parameters = {
            **self._parameters(),
            "epoch": self._claim.epoch,
            "attempt": attempt,
            "patience": _PATIENCE,
        }
        ((stands,),) = await self._transactions.ask("end_own", parameters)
        if not stands:
            raise Lost(f"{self._key}: this worker was taken for dead")
        recorded = await self._transactions.ask("read_own", self._parameters())
        reach("own.ended")
        if not recorded:
            return None
        self._transactions.confirmed.apart(self._claim.run_id, self._key)
        return self._read(recorded[0][0])

    def _read(self, stored: str) -> bytes:
        """What zart_record_step was given in SQL is plain, and only the journal has it encrypted."""
        try:
            return self._transactions.payloads.decrypt(stored, self._place).encode()
        except PayloadUnreadable as error:
            self._activation.end(set_aside(self._claim, error, self._activation.host.now()))
            raise Suspended from None

    @property
    def _place(self) -> Place:
        return Place(self._claim.execution_id, "result", *self._key)

    def _parameters(self) -> dict[str, Any]:
        return key_values(self._claim.run_id, self._key)

    def _step(self, attempt: int) -> str:
        return f"execution {self._claim.execution_id!r}: step {self._key}, attempt {attempt},"
