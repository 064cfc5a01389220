"""What a failed statement means: the weather, the data or the schema."""

import struct

import psycopg
import pytest
from psycopg import errors

from zart._postgres.trouble import Trouble, breaks_off, classify, keeps_connection


@pytest.mark.parametrize(
    ("state", "trouble"),
    [
        ("08006", Trouble.LOST),
        ("08P01", Trouble.LOST),
        ("25006", Trouble.LOST),
        ("40001", Trouble.LOST),
        ("40P01", Trouble.LOST),
        ("53100", Trouble.LOST),
        ("53300", Trouble.LOST),
        ("55P03", Trouble.LOST),
        ("57014", Trouble.LOST),
        ("57P01", Trouble.LOST),
        ("58030", Trouble.LOST),
        ("XX000", Trouble.LOST),
        ("26000", Trouble.LOST),
        ("42P05", Trouble.LOST),
        ("21000", Trouble.DATA),
        ("22P02", Trouble.DATA),
        ("22P05", Trouble.DATA),
        ("22021", Trouble.DATA),
        ("23514", Trouble.DATA),
        ("54001", Trouble.DATA),
        ("42P01", Trouble.SCHEMA),
        ("42501", Trouble.SCHEMA),
        ("42703", Trouble.SCHEMA),
    ],
)
def test_the_class_of_an_sqlstate_decides(state, trouble):
    """Unknown ones are worth another try: an execution never fails of what may pass."""
    assert classify(errors.lookup(state)()) is trouble


def test_what_has_no_sqlstate():
    """The connection's end is the weather; what cannot be sent at all is the data."""
    assert classify(psycopg.OperationalError("server closed the connection unexpectedly")) is Trouble.LOST
    assert classify(psycopg.InterfaceError("the connection is closed")) is Trouble.LOST
    assert classify(TimeoutError()) is Trouble.LOST
    assert classify(ConnectionResetError()) is Trouble.LOST
    assert classify(psycopg.DataError("PostgreSQL text fields cannot contain NUL")) is Trouble.DATA
    assert classify(UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")) is Trouble.DATA
    assert classify(struct.error("int too large to convert")) is Trouble.DATA


def test_a_conflict_leaves_the_connection_as_it_was():
    for state in ("40001", "40P01", "55P03", "57014"):
        assert keeps_connection(errors.lookup(state)())
    for state in ("57P01", "08006", "25006", "53200"):
        assert not keeps_connection(errors.lookup(state)())
    assert not keeps_connection(psycopg.OperationalError("gone"))


def test_only_an_unexplained_end_casts_suspicion_on_a_record():
    """A full disk or a restart is nobody's record's fault, however often it is met."""
    assert breaks_off(psycopg.OperationalError("server closed the connection unexpectedly"))
    assert breaks_off(errors.lookup("XX000")())
    for state in ("53100", "57P01", "58030", "40P01", "25006", "55P03"):
        assert not breaks_off(errors.lookup(state)())
    assert not breaks_off(TimeoutError())
