"""The named statements in `sql/*.sql`.

A file holds statements under headings of the form `-- name: what_it_does`. `{schema}` stands for the quoted schema,
parameters are psycopg's `%(name)s`; a percent sign of SQL's own is written `%%`. Each statement can be pasted into psql
once these are filled in.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

from psycopg import sql

_HEADING = re.compile(r"^-- name: (\w+)[ \t]*$", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*$\n?", re.MULTILINE)


@cache
def load(file: str, schema: str) -> Mapping[str, bytes]:
    """The statements of `sql/<file>.sql` by name, for one schema."""
    text = (resources.files("zart._postgres") / "sql" / f"{file}.sql").read_text()
    parts = _HEADING.split(text)
    quoted = sql.Identifier(schema).as_string(None).replace("%", "%%")
    return MappingProxyType(
        {
            name: _COMMENT.sub("", body).strip().rstrip(";").replace("{schema}", quoted).encode()
            for name, body in zip(parts[1::2], parts[2::2], strict=True)
        }
    )
