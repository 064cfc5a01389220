"""What a schema may be called."""

import pytest

from zart import UsageError
from zart._postgres.direct import statements
from zart._postgres.naming import check_schema
from zart.migrate import sql_text


@pytest.mark.parametrize(
    "name", ["", "x" * 64, "\n; DROP TABLE x; --", "a\rb", "\0", "\x1b", "\udcff", "é" * 40]
)
def test_what_cannot_be_the_name_of_a_schema_is_refused(name):
    """A line break would end the comments of the migrations, and what follows it would be run."""
    with pytest.raises(UsageError, match="the schema is"):
        check_schema(name)
    with pytest.raises(UsageError, match="the schema is"):
        sql_text(name)


@pytest.mark.parametrize(
    "name", ["public", "%s", "{}", 'a"b', "'; DROP TABLE x; --", "select", "a.b", "\u2028", "😀", " "]
)
def test_any_other_sign_may_be_in_it(name):
    """It stands quoted wherever it is used."""
    assert check_schema(name) == name
    assert f'"{name.replace(chr(34), chr(34) * 2)}".zart_tasks' in sql_text(name)


def test_a_percent_sign_in_it_is_no_placeholder():
    """Neither where the client fills parameters in nor where the server does."""
    statement = statements("journal", "%(id)s%")["now"]
    assert statement.text == b'SELECT "%(id)s%".zart_now()'
    assert statement.values({}) == []
