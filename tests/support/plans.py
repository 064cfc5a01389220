"""How the server would run the named statements of `zart/_postgres/sql`, read from EXPLAIN.

A statement is prepared as the library prepares it, and explained with one of the two plans that the server may take
then: `generic`, the one for any values, or `custom`, the one for these.
"""

from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any, Final, Literal

import msgspec
import psycopg
from psycopg import sql

from zart._postgres.direct import Statement
from zart._postgres.queries import load

Mode = Literal["generic", "custom"]
MODES: Final[tuple[Mode, ...]] = ("generic", "custom")


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a table in a plan."""

    relation: str
    index: str | None
    """None: the whole table is read."""
    keyed: bool
    """Whether the index is asked for a range; false: it is read from an end, for its order."""

    def __str__(self) -> str:
        if self.index is None:
            return f"reads all of {self.relation}"
        return f"{self.index}" if self.keyed else f"reads {self.index} from its end"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    root: dict[str, Any]
    """The plan's topmost node, as EXPLAIN tells it in JSON."""

    @property
    def nodes(self) -> Iterator[dict[str, Any]]:
        return _walk(self.root)

    @property
    def scans(self) -> list[Scan]:
        found = []
        for node in self.nodes:
            kind = node["Node Type"]
            if kind in ("Index Scan", "Index Only Scan"):
                relation = node["Relation Name"]
                found.append(Scan(relation=relation, index=node["Index Name"], keyed="Index Cond" in node))
            elif kind == "Bitmap Heap Scan":
                for below in _walk(node):
                    if below["Node Type"] == "Bitmap Index Scan":
                        scan = Scan(
                            relation=node["Relation Name"],
                            index=below["Index Name"],
                            keyed="Index Cond" in below,
                        )
                        found.append(scan)
            elif kind == "ModifyTable":
                relation = node["Relation Name"]
                arbiters = node.get("Conflict Arbiter Indexes", ())
                found += [Scan(relation=relation, index=index, keyed=True) for index in arbiters]
            elif kind in ("Seq Scan", "Tid Scan", "Sample Scan"):
                found.append(Scan(relation=node["Relation Name"], index=None, keyed=False))
        return found

    @property
    def pages(self) -> int:
        """How many pages of tables and indexes it has touched, when it was run."""
        return int(self.root["Shared Hit Blocks"] + self.root["Shared Read Blocks"])


def names() -> list[tuple[str, str]]:
    """Every named statement: its file, without the ending, and its name."""
    files = sorted(
        entry.name.removesuffix(".sql")
        for entry in (resources.files("zart._postgres") / "sql").iterdir()
        if entry.name.endswith(".sql")
    )
    return [(file, name) for file in files for name in load(file, "public")]


class Planner:
    """Plans statements on one connection, which is in autocommit."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._prepared: dict[tuple[str, str], tuple[Statement, list[str]]] = {}

    def plan(self, file: str, name: str, values: Mapping[str, Any], mode: Mode, *, run: bool = False) -> Plan:
        """How it would be run with these parameters; those that are not given are null, or an array of nothing, and
        where a single value is wanted it is the first of an array that is given.

        With `run` it is, and what it does is undone. Raises `psycopg.Error` for what cannot be planned.
        """
        statement, types = self._prepare(file, name)
        literals = [
            self._literal(values.get(parameter), kind)
            for parameter, kind in zip(statement.parameters, types, strict=True)
        ]
        given = sql.SQL("({})").format(sql.SQL(", ").join(literals)) if literals else sql.SQL("")
        options = "ANALYZE, BUFFERS, TIMING off, FORMAT JSON" if run else "FORMAT JSON"
        with self._connection.transaction(force_rollback=True):
            self._connection.execute(f"SET LOCAL plan_cache_mode = force_{mode}_plan")
            query = sql.SQL("EXPLAIN ({}) EXECUTE {}{}").format(
                sql.SQL(options), sql.Identifier(f"{file} {name}"), given
            )
            row = self._connection.execute(query).fetchone()
        assert row is not None
        return Plan(root=row[0][0]["Plan"])

    def _prepare(self, file: str, name: str) -> tuple[Statement, list[str]]:
        known = self._prepared.get((file, name))
        if known is None:
            statement = Statement(load(file, "public")[name])
            identifier = sql.Identifier(f"{file} {name}").as_bytes(None)
            self._connection.execute(b"PREPARE " + identifier + b" AS " + statement.text)
            row = self._connection.execute(
                "SELECT parameter_types::text[] FROM pg_prepared_statements WHERE name = %s",
                (f"{file} {name}",),
            ).fetchone()
            assert row is not None
            known = self._prepared[file, name] = (statement, row[0])
        return known

    def _literal(self, value: Any, kind: str) -> sql.Composable:
        if value is None and kind.endswith("[]"):
            value = []
        cast = sql.SQL("{}::" + kind)
        if isinstance(value, list):
            if not kind.endswith("[]"):
                value = value[0]
            elif not value:
                value = "{}"
        return cast.format(sql.Literal(value))


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", ()):
        yield from _walk(below)
