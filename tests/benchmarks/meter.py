"""What the server did between two moments, told by the server itself.

    meter = Meter(bench, dsn)
    before = meter.read()
    ...
    used = meter.since(before)

Statements are the calls of pg_stat_statements in that database, WAL the distance between two positions in it: both are
there at once, whereas a backend hands in its row counts and commits when it likes, within seconds. So commits and index
entries are counted in the WAL itself (pg_walinspect), where each has a record of its own. The meter's own connection is
to another database, and nothing of it is counted; what it writes in the WAL is nothing.
"""

from types import TracebackType
from typing import Any, Final, Self, cast

import msgspec
import psycopg
from psycopg import conninfo

from tests.benchmarks.bench import Bench

# The expressions of the deferred trigger that notifies run at commit, where the server takes them for statements of the
# client's; they are none.
_CALLS: Final = """
    SELECT s.query, sum(s.calls)::bigint FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
    WHERE d.datname = %s AND s.query NOT LIKE '%%unmetered%%'
        AND s.query NOT LIKE 'EXISTS (SELECT FROM %%' AND s.query NOT LIKE '%%TG_TABLE_SCHEMA%%'
    GROUP BY s.query
"""
_READ: Final = f"""
    SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_insert_lsn() - '0/0',
        (SELECT coalesce(sum(c.sum), 0) FROM ({_CALLS}) AS c),
        (SELECT sessions FROM pg_stat_database WHERE datname = %s)
"""
_COMMITS: Final = """
    SELECT coalesce(sum(count), 0)::bigint FROM pg_get_wal_stats(%s, %s, true)
    WHERE "resource_manager/record_type" = 'Transaction/COMMIT'
"""
# A leaf gets one entry by each of these; where it is split, the record is that of the split. Inner pages are split as
# well, once in tens of thousands of entries.
_ENTRIES: Final = """
    SELECT i.relfilenode, count(*) FROM pg_get_wal_block_info(%s, %s, false) i
        JOIN pg_database d ON d.oid = i.reldatabase
    WHERE d.datname = %s AND i.block_id = 0 AND i.resource_manager = 'Btree'
        AND i.record_type IN ('INSERT_LEAF', 'INSERT_POST', 'SPLIT_L', 'SPLIT_R')
    GROUP BY i.relfilenode
"""
_ROWS: Final = """
    SELECT i.record_type, count(*) FROM pg_get_wal_block_info(%s, %s, false) i
        JOIN pg_database d ON d.oid = i.reldatabase
    WHERE d.datname = %s AND i.block_id = 0 AND i.resource_manager = 'Heap'
    GROUP BY i.record_type
"""
_INDEXES: Final = "SELECT relfilenode, relname FROM pg_class WHERE relkind = 'i' AND oid >= 16384"
_CONNECTIONS: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = ANY (%s)"
)

WORKER: Final = ["zart worker", "zart heartbeat", "zart listener"]
CLIENT: Final = ["zart client", "zart client listener"]
"""How the connections of each call themselves."""
UNMETERED: Final = "/* unmetered */"
"""A statement with this in it is not counted."""


class Reading(msgspec.Struct, kw_only=True, frozen=True):
    """What the server had done by one moment."""

    position: str
    """In the WAL."""
    wal_bytes: int
    statements: int
    sessions: int
    """Connections that were ever opened to the database, as far as they have said so; all that are closed have."""


class Used(msgspec.Struct, kw_only=True, frozen=True):
    """What it did between two."""

    begun: Reading
    ended: Reading

    @property
    def statements(self) -> int:
        return self.ended.statements - self.begun.statements

    @property
    def sessions(self) -> int:
        return self.ended.sessions - self.begun.sessions

    @property
    def wal_bytes(self) -> int:
        """Of the whole server, which does nothing else."""
        return self.ended.wal_bytes - self.begun.wal_bytes


class Meter:
    """See the module."""

    def __init__(self, bench: Bench, dsn: str) -> None:
        self._dsn = dsn
        self._database = str(conninfo.conninfo_to_dict(dsn)["dbname"])
        self._connection = psycopg.connect(bench.server.dsn(), autocommit=True)
        for extension in ("pg_stat_statements", "pg_walinspect"):
            self._connection.execute(f"CREATE EXTENSION IF NOT EXISTS {extension}".encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        self._connection.close()

    def read(self) -> Reading:
        ((position, wal_bytes, statements, sessions),) = self._rows(_READ, self._database, self._database)
        return Reading(
            position=position, wal_bytes=int(wal_bytes), statements=int(statements), sessions=int(sessions)
        )

    def since(self, begun: Reading) -> Used:
        return Used(begun=begun, ended=self.read())

    def calls(self) -> dict[str, int]:
        """How often each statement was called so far, by its text."""
        return dict(cast("list[tuple[str, int]]", self._rows(_CALLS, self._database)))

    def commits(self, used: Used) -> int:
        """Commits of transactions that wrote something: the WAL has no others, and only these wait for the disk."""
        ((commits,),) = self._rows(_COMMITS, used.begun.position, used.ended.position)
        return int(commits)

    def entries(self, used: Used) -> dict[str, int]:
        """Entries that were put into each index of the database's own tables."""
        rows = self._rows(_ENTRIES, used.begun.position, used.ended.position, self._database)
        with psycopg.connect(self._dsn) as connection:
            names: dict[int, str] = dict(connection.execute(_INDEXES).fetchall())
        return {names[node]: count for node, count in rows if node in names}

    def updates(self, used: Used) -> tuple[int, int]:
        """Rows that were updated, and how many of these updates put nothing into any index (HOT)."""
        found = dict.fromkeys(("UPDATE", "HOT_UPDATE"), 0)
        for kind, count in self._rows(_ROWS, used.begun.position, used.ended.position, self._database):
            if (name := kind.removesuffix("+INIT")) in found:
                found[name] += count
        return sum(found.values()), found["HOT_UPDATE"]

    def connections(self, applications: list[str]) -> int:
        """How many of these are open now."""
        ((count,),) = self._rows(_CONNECTIONS, self._database, applications)
        return int(count)

    def _rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement.encode(), parameters).fetchall()
