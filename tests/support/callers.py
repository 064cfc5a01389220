"""Everybody who may start and signal in a transaction of his own, with one face.

    async with CALLERS["django"](dsn) as caller:
        await caller.start(ship, Order(1), id="a")
        await caller.commit()

A transaction is open from the first statement to `commit` or `rollback`. Callers that are not asynchronous work in a
thread of their own, as they would in a server.
"""

import asyncio
import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Self, TypeVar

import django
import django.conf
import django.db
import msgspec
import psycopg
import psycopg2
import psycopg2.extras
import sqlalchemy
import sqlalchemy.ext.asyncio
import sqlalchemy.orm
from psycopg import conninfo

import zart
import zart.sync
from zart.durable import Durable

T = TypeVar("T")

if not django.conf.settings.configured:
    django.conf.settings.configure(USE_TZ=True, LOGGING_CONFIG=None)
    django.setup()


class Caller(ABC):
    """Somebody with a connection."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    @abstractmethod
    async def __aenter__(self) -> Self: ...
    @abstractmethod
    async def __aexit__(self, *_: object) -> None: ...
    @abstractmethod
    async def execute(self, statement: str) -> None:
        """A statement of the caller's own, in his transaction."""

    @abstractmethod
    async def start(self, fn: Durable[..., Any], data: Any, *, id: str) -> None: ...
    @abstractmethod
    async def offer(self, id: str, event: str, payload: Any, *, dedup: str | None = None) -> None: ...
    @abstractmethod
    async def commit(self) -> None: ...
    @abstractmethod
    async def rollback(self) -> None: ...


# ---------------------------------------------------------------- asynchronous


class PsycopgAsync(Caller):
    """`zart.start(..., connection=)` on a connection of psycopg's."""

    async def __aenter__(self) -> Self:
        self.connection = await psycopg.AsyncConnection.connect(self.dsn)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.connection.close()

    async def execute(self, statement: str) -> None:
        await self.connection.execute(statement.encode())

    async def start(self, fn: Durable[..., Any], data: Any, *, id: str) -> None:
        assert await zart.start(fn, data, id=id, connection=self.connection) == id

    async def offer(self, id: str, event: str, payload: Any, *, dedup: str | None = None) -> None:
        await zart.offer_event(id, event, payload, dedup=dedup, connection=self.connection)

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self) -> None:
        await self.connection.rollback()


class SQLAlchemyAsync(PsycopgAsync):
    """The connection beneath an `AsyncSession` of SQLAlchemy's."""

    async def __aenter__(self) -> Self:
        self.engine = sqlalchemy.ext.asyncio.create_async_engine(
            "postgresql+psycopg://",
            async_creator=lambda: psycopg.AsyncConnection.connect(self.dsn),
            poolclass=sqlalchemy.NullPool,
        )
        self.session = sqlalchemy.ext.asyncio.AsyncSession(self.engine)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        await self.engine.dispose()

    async def execute(self, statement: str) -> None:
        await self.session.execute(sqlalchemy.text(statement))

    async def _use(self) -> None:
        connection = await self.session.connection()
        self.connection = (await connection.get_raw_connection()).driver_connection

    async def start(self, fn: Durable[..., Any], data: Any, *, id: str) -> None:
        await self._use()
        await super().start(fn, data, id=id)

    async def offer(self, id: str, event: str, payload: Any, *, dedup: str | None = None) -> None:
        await self._use()
        await super().offer(id, event, payload, dedup=dedup)

    async def commit(self) -> None:
        await self.session.commit()

    async def rollback(self) -> None:
        await self.session.rollback()


# ---------------------------------------------------------------- with zart.sync


class Sync(Caller):
    """`zart.sync.start(..., connection=)` in a thread; `connect` makes the connection there."""

    connection: Any

    async def __aenter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1)
        await self.run(self.connect)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.run(self.close)
        self._thread.shutdown()

    async def run(self, fn: Callable[[], T]) -> T:
        """What a function gives in the caller's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, fn)

    @abstractmethod
    def connect(self) -> None: ...

    def close(self) -> None:
        self.connection.close()

    def lend(self) -> Any:
        """What is given as `connection=`."""
        return self.connection

    def set_autocommit(self) -> None:
        self.connection.autocommit = True

    async def execute(self, statement: str) -> None:
        def execute() -> None:
            cursor = self.lend().cursor()
            cursor.execute(statement)
            cursor.close()

        await self.run(execute)

    async def start(self, fn: Durable[..., Any], data: Any, *, id: str) -> None:
        assert await self.run(lambda: zart.sync.start(fn, data, id=id, connection=self.lend())) == id

    async def offer(self, id: str, event: str, payload: Any, *, dedup: str | None = None) -> None:
        await self.run(lambda: zart.sync.offer_event(id, event, payload, dedup=dedup, connection=self.lend()))

    async def commit(self) -> None:
        await self.run(self.connection.commit)

    async def rollback(self) -> None:
        await self.run(self.connection.rollback)


class Psycopg(Sync):
    def connect(self) -> None:
        self.connection = psycopg.connect(self.dsn)


class PsycopgDicts(Sync):
    """Rows are dictionaries, and values are put into the statement's text."""

    def connect(self) -> None:
        self.connection = psycopg.connect(
            self.dsn, row_factory=psycopg.rows.dict_row, cursor_factory=psycopg.ClientCursor
        )


class Psycopg2(Sync):
    def connect(self) -> None:
        self.connection = psycopg2.connect(self.dsn)


class Psycopg2Dicts(Sync):
    def connect(self) -> None:
        self.connection = psycopg2.connect(self.dsn, cursor_factory=psycopg2.extras.RealDictCursor)


class Psycopg2Names(Sync):
    def connect(self) -> None:
        self.connection = psycopg2.connect(self.dsn, cursor_factory=psycopg2.extras.NamedTupleCursor)


class Django(Sync):
    """`django.db.connection`."""

    debug: ClassVar[bool] = False

    def connect(self) -> None:
        where = conninfo.conninfo_to_dict(self.dsn)
        names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
        settings = {name: where.pop(key, "") for key, name in names.items()}
        settings |= {"ENGINE": "django.db.backends.postgresql", "OPTIONS": where}
        self.connection = django.db.utils.ConnectionHandler({"default": settings})["default"]
        self.connection.force_debug_cursor = self.debug
        self.connection.set_autocommit(False)

    def set_autocommit(self) -> None:
        self.connection.set_autocommit(True)


class DjangoDebug(Django):
    """It keeps a list of its statements, as with DEBUG = True."""

    debug = True


class SQLAlchemy(Sync):
    """The connection beneath a `Session` of SQLAlchemy's."""

    url: ClassVar[str] = "postgresql+psycopg://"
    driver: ClassVar[Callable[[str], Any]] = psycopg.connect

    def connect(self) -> None:
        engine = sqlalchemy.create_engine(
            self.url, creator=lambda: type(self).driver(self.dsn), poolclass=sqlalchemy.NullPool
        )
        self.connection = sqlalchemy.orm.Session(engine)

    def lend(self) -> Any:
        return self.connection.connection().connection

    def set_autocommit(self) -> None:
        engine = self.connection.get_bind().execution_options(isolation_level="AUTOCOMMIT")
        self.connection = sqlalchemy.orm.Session(engine)


class SQLAlchemyPsycopg2(SQLAlchemy):
    url = "postgresql+psycopg2://"
    driver = psycopg2.connect


# ---------------------------------------------------------------- without Python


class Psql(Caller):
    """Somebody types SQL."""

    async def __aenter__(self) -> Self:
        self._psql = await asyncio.create_subprocess_exec(
            "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", self.dsn,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        await self.execute("BEGIN")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._psql.stdin is not None
        self._psql.stdin.close()
        assert await self._psql.wait() == 0

    async def execute(self, statement: str) -> None:
        assert self._psql.stdin is not None
        assert self._psql.stdout is not None
        self._psql.stdin.write(f"{statement};\n\\echo executed\n".encode())
        while (line := await self._psql.stdout.readline()).strip() != b"executed":
            assert line, "psql has ended"

    async def start(self, fn: Durable[..., Any], data: Any, *, id: str) -> None:
        await self.execute(f"SELECT zart_start('{fn.name}', '{id}', '{_json(data)}')")

    async def offer(self, id: str, event: str, payload: Any, *, dedup: str | None = None) -> None:
        key = "NULL" if dedup is None else f"'{dedup}'"
        await self.execute(f"SELECT zart_offer_event('{id}', '{event}', '{_json(payload)}', {key})")

    async def commit(self) -> None:
        await self.execute("COMMIT; BEGIN")

    async def rollback(self) -> None:
        await self.execute("ROLLBACK; BEGIN")


class Trigger(PsycopgAsync):
    """Triggers on tables of the business: it only inserts rows, and knows nothing of Zart."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self.execute(
            """
            CREATE TABLE parcels (id text, fn text, data jsonb);
            CREATE FUNCTION start() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM zart_start(NEW.fn, NEW.id, NEW.data); RETURN NULL; END $$;
            CREATE TRIGGER start AFTER INSERT ON parcels FOR EACH ROW EXECUTE FUNCTION start();
            CREATE TABLE clicks (id text, event text, data jsonb, dedup text);
            CREATE FUNCTION offer() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM zart_offer_event(NEW.id, NEW.event, NEW.data, NEW.dedup); RETURN NULL; END $$;
            CREATE TRIGGER offer AFTER INSERT ON clicks FOR EACH ROW EXECUTE FUNCTION offer();
            """
        )
        await self.commit()
        return self

    async def start(self, fn: Durable[..., Any], data: Any, *, id: str) -> None:
        await self.connection.execute("INSERT INTO parcels VALUES (%s, %s, %s)", (id, fn.name, _json(data)))

    async def offer(self, id: str, event: str, payload: Any, *, dedup: str | None = None) -> None:
        row = (id, event, _json(payload), dedup)
        await self.connection.execute("INSERT INTO clicks VALUES (%s, %s, %s, %s)", row)


def _json(value: Any) -> str:
    return json.dumps(msgspec.to_builtins(value)).replace("'", "''")


ASYNC = {"psycopg async": PsycopgAsync, "SQLAlchemy async": SQLAlchemyAsync}
SYNC: dict[str, type[Sync]] = {
    "psycopg": Psycopg,
    "psycopg with dictionaries": PsycopgDicts,
    "psycopg2": Psycopg2,
    "psycopg2 with dictionaries": Psycopg2Dicts,
    "psycopg2 with named tuples": Psycopg2Names,
    "Django": Django,
    "Django with DEBUG": DjangoDebug,
    "SQLAlchemy": SQLAlchemy,
    "SQLAlchemy with psycopg2": SQLAlchemyPsycopg2,
}
SQL = {"psql": Psql, "a trigger": Trigger}
CALLERS: dict[str, type[Caller]] = {**ASYNC, **SYNC, **SQL}
