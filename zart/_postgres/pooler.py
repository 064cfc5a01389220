"""Whether a connection pooler stands between us and PostgreSQL.

A pooler in transaction mode gives each transaction another of its own connections. So nothing may be left in a session:
neither a LISTEN nor, with many of them, a prepared statement. A pooler says nothing of itself. But the number of the
server's process, which is announced to each client so that it can cancel a statement, is an invention of the pooler;
asked for it, the server gives the true one.
"""

from typing import Any

from psycopg import AsyncConnection


async def through_pooler(connection: AsyncConnection[Any]) -> bool:
    """Whether the process that was announced is not the one that answers. Asks the server, once."""
    cursor = await connection.execute("SELECT pg_catalog.pg_backend_pid()")
    ((backend,),) = await cursor.fetchall()
    return bool(connection.info.backend_pid != backend)
