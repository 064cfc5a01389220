"""The named statements in `sql/*.sql`.

A file holds statements under headings of the form `-- name: what_it_does`. `{schema}` stands for the quoted schema,
parameters are psycopg's `%(name)s`; a percent sign of SQL's own is written `%%`, so that even a statement without
parameters is sent with an empty set of them. `{time:column}` and `{interval:column}` are a column as Python can hold
it: PostgreSQL's times go on for ever, and one infinity written into a row must not keep a worker from reading all
others. Each statement can be pasted into psql once these are filled in.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

from psycopg import sql

_HEADING = re.compile(r"^-- name: (\w+)[ \t]*$", re.MULTILINE)
_BOUNDED = re.compile(r"\{(time|interval):([\w.]+)\}")
_BOUNDS = {
    # Far enough from the ends of Python's calendar to add any duration, and to be shown in any time zone.
    "time": ("timestamptz '0001-01-02 00:00:00+00'", "timestamptz '8000-01-01 00:00:00+00'"),
    "interval": ("interval '0'", "interval '365000 days'"),
}
_COMMENT = re.compile(r"^\s*--.*$\n?", re.MULTILINE)


@cache
def load(file: str, schema: str) -> Mapping[str, bytes]:
    """The statements of `sql/<file>.sql` by name, for one schema."""
    text = (resources.files("zart._postgres") / "sql" / f"{file}.sql").read_text()
    parts = _HEADING.split(text)
    quoted = sql.Identifier(schema).as_string(None).replace("%", "%%")
    return MappingProxyType(
        {
            name: _BOUNDED.sub(_bounded, _COMMENT.sub("", body).strip().rstrip(";"))
            .replace("{schema}", quoted)
            .encode()
            for name, body in zip(parts[1::2], parts[2::2], strict=True)
        }
    )


def _bounded(found: re.Match[str]) -> str:
    kind, column = found.groups()
    least, most = _BOUNDS[kind]
    return f"CASE WHEN {column} IS NOT NULL THEN least(greatest({column}, {least}), {most}) END"
