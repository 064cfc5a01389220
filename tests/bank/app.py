"""The bank's durable function, and its transfer in each of the ways in which a step can have a transaction."""

import os
from typing import Any

import msgspec
import psycopg
from psycopg.types.json import Jsonb

import zart
import zart.sync
from tests.acceptance.apps.place import note
from zart import durable, step

DSN_VARIABLE = "ZART_TEST_BANK"
"""Where the steps that have transactions of their own find the bank."""

SCHEMA = """
    CREATE TABLE accounts (id int PRIMARY KEY, amount bigint NOT NULL);
    CREATE TABLE transfers (id text NOT NULL, source int NOT NULL, target int NOT NULL, amount bigint NOT NULL);
    CREATE INDEX transfers_id ON transfers (id);
"""
"""Nothing here keeps a transfer from being applied twice."""

_TAKE = "UPDATE accounts SET amount = amount - %s WHERE id = %s"
_GIVE = "UPDATE accounts SET amount = amount + %s WHERE id = %s"
_WRITE_DOWN = "INSERT INTO transfers VALUES (%s, %s, %s, %s)"


class Transfer(msgspec.Struct, frozen=True):
    source: int
    target: int
    amount: int
    by: str
    """`async`, `thread` or `own`."""


def statements(transfer: Transfer) -> list[tuple[str, tuple[Any, ...]]]:
    """In the order of the transfer, not of the accounts: two of them may deadlock."""
    return [
        (_TAKE, (transfer.amount, transfer.source)),
        (_GIVE, (transfer.amount, transfer.target)),
        (_WRITE_DOWN, (zart.execution_id(), transfer.source, transfer.target, transfer.amount)),
    ]


@step("transfer", transaction=True)
async def transfer_async(transfer: Transfer) -> int:
    note("transfer")
    for statement, parameters in statements(transfer):
        await zart.connection().execute(statement, parameters)
    return transfer.amount


@step("transfer-in-a-thread", transaction=True)
def transfer_in_a_thread(transfer: Transfer) -> int:
    note("transfer")
    for statement, parameters in statements(transfer):
        zart.sync.connection().execute(statement, parameters)
    return transfer.amount


@step("transfer-by-itself", transaction="own", retry="fixed(100, 20ms)")
def transfer_by_itself(transfer: Transfer) -> int:
    note("transfer")
    with psycopg.connect(os.environ[DSN_VARIABLE]) as connection:
        for statement, parameters in statements(transfer):
            connection.execute(statement, parameters)
        connection.execute(
            "SELECT zart_record_step(%s, %s)", (zart.step_context().token, Jsonb(transfer.amount))
        )
    return transfer.amount


_BY = {"async": transfer_async, "thread": transfer_in_a_thread, "own": transfer_by_itself}


@durable("bank-transfer")
async def bank_transfer(transfer: Transfer) -> int:
    return await _BY[transfer.by](transfer)


registry = zart.Registry(bank_transfer)
