"""JSON given on the command line."""

import pytest

from zart import UsageError
from zart_cli.values import read_data


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("[" * 10_000 + "]" * 10_000, "nested too deep"),
        ('"\udcff"', "no text in UTF-8"),
        ("@a\0b", "cannot be read"),
        ("{", "no JSON"),
        ("1e400", "no JSON"),
        ("NaN", "no JSON"),
        ("@/no/such/file", "cannot be read"),
    ],
)
def test_what_is_no_json_is_refused_in_one_line(given, told):
    """However deep, and whatever bytes the shell passed on."""
    with pytest.raises(UsageError, match=told) as refusal:
        read_data(given)
    assert "\n" not in str(refusal.value)
