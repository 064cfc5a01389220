"""What a schema may be called, and what to say when its tables are not those of this version."""

import re
import shlex

from zart._postgres.trouble import sqlstate
from zart.errors import SchemaError, UsageError

_MAY_NOT = "42501"


def check_schema(schema: object) -> str:
    """Return `schema` if it may be the name of one. Raises UsageError otherwise."""
    if not isinstance(schema, str) or not 0 < len(schema.encode(errors="surrogatepass")) <= 63:
        raise UsageError(f"the schema is {schema!r}: it must be text of 1 to 63 bytes, such as 'public'")
    if re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", schema):
        # PostgreSQL would take most of these, but a line break ends the comments that name the schema.
        raise UsageError(
            f"the schema is {schema!r}: control characters and half characters cannot be in its name"
        )
    return schema


def migrate_command(schema: str) -> str:
    """The command that brings `schema` up to date, ready to paste."""
    return "zart migrate" if schema == "public" else f"zart migrate --schema {shlex.quote(schema)}"


def schema_trouble(error: Exception, schema: str) -> SchemaError:
    """The error for a statement that found other tables than it expects, or may not use them."""
    reason = " ".join(str(error).split("\n", 1)[0].split())
    if sqlstate(error) == _MAY_NOT:
        return SchemaError(
            f"this database role may not do that in schema {schema!r}: {reason}. Grant it the right"
        )
    return SchemaError(
        f"Zart's tables in schema {schema!r} are missing or not those of this version ({reason}): "
        f"run `{migrate_command(schema)}`"
    )
