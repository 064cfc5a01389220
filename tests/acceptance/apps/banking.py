"""A transfer that is stopped in the middle of its transaction."""

import os

import psycopg
from psycopg.types.json import Jsonb

import zart
from tests.acceptance.apps.place import happened, note, through
from zart import durable, step


@step("transfer", transaction=True)
async def transfer() -> int:
    first = not happened("transfer")
    await zart.connection().execute("UPDATE accounts SET amount = amount - 1")
    note("transfer")
    if first:
        await through("never")
    return os.getpid()


@durable("stopped-in-a-transaction")
async def stopped() -> int:
    return await transfer()


@step("transfer-by-itself", transaction="own", retry="fixed(50, 100ms)")
def transfer_by_itself(dsn: str) -> int:
    first = not happened("transfer")
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE accounts SET amount = amount - 1")
        connection.execute("SELECT zart_record_step(%s, %s)", (zart.step_context().token, Jsonb(os.getpid())))
        note("transfer")
        while first:
            pass
    return os.getpid()


@durable("stopped-in-its-own-transaction")
async def stopped_itself(dsn: str) -> int:
    return await transfer_by_itself(dsn)


registry = zart.Registry(stopped, stopped_itself)
