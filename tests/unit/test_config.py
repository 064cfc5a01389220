"""Settings: a worker's, and where the database is."""

import dataclasses
import datetime as dt

import pytest

from zart import UsageError, WorkerConfig
from zart.config import find_direct_dsn, find_dsn, mask_dsn, resolve_dsn

SECRET = "s3cret"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for variable in ("ZART_DATABASE_URL", "DATABASE_URL", "ZART_DIRECT_URL"):
        monkeypatch.delenv(variable, raising=False)


# ---------------------------------------------------------------- worker


def test_durations_are_timedeltas_once_it_is_made():
    """Text, seconds and timedeltas are read once."""
    config = WorkerConfig(poll_interval="200ms", shutdown_timeout=0, orphan_timeout=dt.timedelta(minutes=1))
    assert config.poll_interval == dt.timedelta(milliseconds=200)
    assert config.shutdown_timeout == dt.timedelta(0)
    assert config.orphan_timeout == dt.timedelta(minutes=1)
    assert config.heartbeat_interval == dt.timedelta(seconds=5)


def test_a_worker_gives_up_after_ten_orphan_timeouts_unless_told_otherwise():
    """wedge_timeout follows orphan_timeout."""
    assert WorkerConfig().wedge_timeout == dt.timedelta(seconds=300)
    assert WorkerConfig(orphan_timeout="20s").wedge_timeout == dt.timedelta(seconds=200)
    assert WorkerConfig(wedge_timeout="1m").wedge_timeout == dt.timedelta(minutes=1)


def test_it_is_a_value():
    """Frozen, comparable, with a text that shows its fields."""
    config = WorkerConfig(queues=("a", "b"))
    assert config == WorkerConfig(queues=("a", "b"))
    assert hash(config) == hash(WorkerConfig(queues=("a", "b")))
    assert "queues=('a', 'b')" in repr(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_threads = 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"poll_interval": "soon"}, "poll_interval is 'soon'"),
        ({"poll_interval": 0}, "poll_interval is zero"),
        ({"shutdown_timeout": -1}, "shutdown_timeout is -1"),
        ({"orphan_timeout": 0}, "orphan_timeout is zero"),
        ({"heartbeat_interval": "16s"}, "heartbeat_interval is 16s.*half of orphan_timeout \\(30s\\)"),
        ({"orphan_timeout": "9s"}, "heartbeat_interval is 5s.*half of orphan_timeout \\(9s\\)"),
        ({"wedge_timeout": 0}, "wedge_timeout is zero"),
        ({"retention": 0}, "retention is zero"),
        ({"retention": "soon"}, "retention is 'soon'"),
        ({"keep_ids": "1d"}, "keep_ids goes with retention"),
        ({"retention": "2d", "keep_ids": "1d"}, "keep_ids is 24h, shorter than retention \\(48h\\)"),
        ({"max_tasks_per_poll": 0}, "max_tasks_per_poll is 0.*from 1"),
        ({"max_concurrent_tasks": 1.5}, "max_concurrent_tasks is 1.5"),
        ({"max_threads": True}, "max_threads is True"),
        ({"max_recoveries": -1}, "max_recoveries is -1.*from 0"),
        ({"max_inflight_steps": 0}, "max_inflight_steps is 0"),
        ({"max_parked_bodies": None}, "max_parked_bodies is None"),
        ({"queues": "mail"}, "queues is 'mail'.*tuple"),
        ({"queues": ("",)}, "queues is"),
        ({"queues": (7,)}, "queues is"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(fields, told):
    """The text names the field, the value and what is accepted."""
    with pytest.raises(UsageError, match=told):
        WorkerConfig(**fields)


# ---------------------------------------------------------------- where the database is


def test_the_given_dsn_goes_before_the_variables_and_one_variable_before_the_other(monkeypatch):
    """Given, then ZART_DATABASE_URL, then DATABASE_URL; an empty variable is none."""
    assert find_dsn(None) is None
    monkeypatch.setenv("DATABASE_URL", "postgresql:///b")
    assert resolve_dsn(None) == ("postgresql:///b", "DATABASE_URL")
    monkeypatch.setenv("ZART_DATABASE_URL", "")
    assert resolve_dsn(None) == ("postgresql:///b", "DATABASE_URL")
    monkeypatch.setenv("ZART_DATABASE_URL", "postgresql:///a")
    assert resolve_dsn(None) == ("postgresql:///a", "ZART_DATABASE_URL")
    assert resolve_dsn("dbname=c") == ("dbname=c", "the DSN given")


def test_without_any_dsn_the_text_says_what_to_set():
    """Both variables and the embedded server are named."""
    with pytest.raises(UsageError, match=r"ZART_DATABASE_URL or DATABASE_URL.*'embedded'"):
        resolve_dsn()


def test_the_direct_address_has_a_variable_of_its_own(monkeypatch):
    """ZART_DIRECT_URL leads past a pooler."""
    assert find_direct_dsn() is None
    monkeypatch.setenv("ZART_DIRECT_URL", "postgres://direct/db")
    assert find_direct_dsn() == "postgresql://direct/db"
    monkeypatch.setenv("ZART_DIRECT_URL", "mysql://direct/db")
    with pytest.raises(UsageError, match="ZART_DIRECT_URL is the address of another database"):
        find_direct_dsn()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://ann@host/db", "postgresql://ann@host/db"),
        ("postgres://ann@host/db?sslmode=require", "postgresql://ann@host/db?sslmode=require"),
        ("postgresql+psycopg://host/db", "postgresql://host/db"),
        ("postgresql+psycopg_async://host/db", "postgresql://host/db"),
        ("postgresql+psycopg2://host/db", "postgresql://host/db"),
        ("postgresql+asyncpg://host/db", "postgresql://host/db"),
        ("postgresql+asyncpg://host/db?ssl=require", "postgresql://host/db?sslmode=require"),
        (
            "postgresql+asyncpg://host/db?application_name=b&ssl=true",
            "postgresql://host/db?application_name=b&sslmode=require",
        ),
        ("PostgreSQL://host/db", "postgresql://host/db"),
        ("  postgresql:///db\n", "postgresql:///db"),
        ("host=/tmp dbname=db password='a b'", "host=/tmp dbname=db password='a b'"),
        ("embedded", "embedded"),
    ],
)
def test_addresses_of_all_styles_become_libpq_s(given, used):
    """What SQLAlchemy and others write before :// is dropped."""
    assert resolve_dsn(given)[0] == used


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("mysql://host/db", "another database \\(MySQL\\).*PostgreSQL"),
        ("mysql+pymysql://ann:s3cret@host/db", "another database \\(MySQL\\)"),
        ("sqlite:///file.db", "another database \\(SQLite\\)"),
        ("http://host/db", "another database \\(http://\\)"),
        ("my-database", "is my-database, which is no DSN"),
        ("", "is empty, which is no DSN"),
        (7, "is int, not text"),
    ],
)
def test_what_is_no_address_of_postgresql_is_refused(given, told):
    """The text says what it is and what is accepted, and shows no password."""
    with pytest.raises(UsageError, match=told) as refusal:
        resolve_dsn(given)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    ("dsn", "masked"),
    [
        ("password='a' s3cr3t' host=db", "password=*** *** host=db"),
        ("postgresql://ann:s3cret@host:5432/db", "postgresql://ann:***@host:5432/db"),
        ("postgresql+asyncpg://ann:s3cret@host/db", "postgresql+asyncpg://ann:***@host/db"),
        ("postgresql://ann@host/db", "postgresql://ann@host/db"),
        ("postgresql://:s3cret@host/db", "postgresql://:***@host/db"),
        ("postgresql:///db", "postgresql:///db"),
        ("postgresql://host/db?user=ann&password=s3cret", "postgresql://host/db?user=ann&password=***"),
        ("postgresql://host/db?PASSWORD=s3cret&a=b", "postgresql://host/db?PASSWORD=***&a=b"),
        ("postgresql://host/db?sslpassword=s3cret", "postgresql://host/db?sslpassword=***"),
        ("postgresql://ann:p@s3cret@host/db", "postgresql://ann:***@host/db"),
        ("postgresql://ann:p/s3cret@host/db", "postgresql://ann:***@host/db"),
        ("postgresql://ann:p@x/s3cret@host/db", "postgresql://ann:***@host/db"),
        ("postgresql://ann:p?s3cret@host/db", "postgresql://ann:***@host/db"),
        ("host=h password=s3cret dbname=db", "host=h password=*** dbname=db"),
        ("host=h password = 's3cret too' dbname=db", "host=h password = *** dbname=db"),
        (r"password='it\'s s3cret' host=h", "password=*** host=h"),
        (r"password=it\ s3cret host=h", "password=*** host=h"),
        ("password='s3cret", "password=***"),
        ("password='s3cret\\", "password=***"),
        ("password=it's3cret host=h", "password=*** host=h"),
        ("host=h PASSWORD = 'x's3cret", "host=h PASSWORD = ***"),
        ("password=my s3cret words host=h", "password=*** host=h"),
        ("host= password=s3cret", "host= password=***"),
        ("host= password = s3cret", "host= password = ***"),
        ("password= a=s3cret", "password= ***"),
        ("password=a sslpassword = s3cret", "password=*** sslpassword = ***"),
        ("scram_client_key=s3cret host=h", "scram_client_key=*** host=h"),
        (" postgresql://ann:s3cret@host/db", "postgresql://ann:***@host/db"),
        ("postgresql://ann:s3cret", "postgresql://ann:***"),
        ("postgresql://ann:s3cret/db", "postgresql://ann:***/db"),
        ("postgresql://ann@s3cret@host/db", "postgresql://ann:***@host/db"),
        ("postgresql://[::1]:5432/db", "postgresql://[::1]:5432/db"),
        ("postgresql://host/db?pass%77ord=s3cret", "postgresql://host/db?pass%77ord=***"),
        ("postgresql://host/db?password=a&s3cret", "postgresql://host/db?password=***&***"),
        ("ann:s3cret@host/db", "***@host/db"),
        ("postgresql:/ann:s3cret@host", "***@host"),
        ("postgresql:ann:s3cret", "postgresql:***"),
        ("host=h dbname=db", "host=h dbname=db"),
        ("embedded", "embedded"),
    ],
)
def test_a_password_never_shows(dsn, masked):
    """In either form, quoted, escaped, in the query, or with signs that should have been escaped."""
    assert mask_dsn(dsn) == masked


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("postgresql://ann:s3cret@host\0/db", "NUL"),
        ("postgresql://ann:s3cret@\udcff/db", "half of a character"),
        ("postgresql://ann:s3cret@.host/db", "a host in it"),
        (f"postgresql://ann:s3cret@{'h' * 300}/db", "a host in it"),
        ("postgresql://ann:s%zz3cret@host/db", "special signs"),
        ("postgresql://ann:s3cret@host:port/db", "special signs"),
        ("postgresql://ann:s3cret@[::1/db", "special signs"),
        ("postgresql://ann:s3cret@host/db?what=ever", "special signs"),
        ("postgresql://ann:s3cret@host/db?connect_timeout=soon", "connect_timeout"),
        ("host=h password=s3cret dbname", "special signs"),
    ],
)
def test_what_libpq_or_the_resolver_could_not_read_is_refused(given, told):
    """Before anything is tried, by an error of this library, which shows no password."""
    with pytest.raises(UsageError, match=told) as refusal:
        resolve_dsn(given)
    assert SECRET not in str(refusal.value)
    assert "zz3cret" not in str(refusal.value)
