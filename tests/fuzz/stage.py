"""A worker that lives through all examples of a test module, and what must hold after each of them.

It runs in a thread of its own, so that it goes on while the test thinks of the next example, as a worker would.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
from anyio.from_thread import start_blocking_portal

from tests.support.running import fast, until
from zart import Client, Registry, Worker, WorkerConfig
from zart.durable import Durable, durable
from zart.step import step

T = TypeVar("T")

ENDS = ("completed", "failed", "cancelled", "blocked")

_SCHEMA_OBJECTS = """
    SELECT kind, name FROM (
        SELECT 'relation ' || relkind::text AS kind, oid::regclass::text AS name FROM pg_class
            WHERE relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace,
                'pg_toast'::regnamespace) AND relpersistence = 'p'
        UNION ALL SELECT 'function', oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT 'schema', nspname::text FROM pg_namespace WHERE nspname !~ '^pg_'
        UNION ALL SELECT 'trigger', tgname::text FROM pg_trigger
        UNION ALL SELECT 'constraint', conname::text FROM pg_constraint
        UNION ALL SELECT 'role', rolname::text FROM pg_roles
    ) objects ORDER BY 1, 2
"""


@step("double")
async def double(number: int) -> int:
    return number * 2


@durable("innocent")
async def innocent(number: int) -> int:
    return await double(number) + 1


class _Complaints(logging.Handler):
    """What zart's loggers said with a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.tracebacks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.tracebacks.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


class Stage:
    """`with Stage(dsn, functions…) as stage:`"""

    def __init__(self, dsn: str, *functions: Durable[..., Any], config: WorkerConfig | None = None) -> None:
        self.dsn = dsn
        self._registry = Registry(innocent, *functions)
        self._config = config or fast(orphan_timeout="30s")
        self._numbers = itertools.count(1)
        self._complaints = _Complaints()
        self.client: Client
        self._worker: Worker | None = None

    def __enter__(self) -> Self:
        logging.getLogger("zart").addHandler(self._complaints)
        self._portal_context = start_blocking_portal()
        self._portal = self._portal_context.__enter__()
        self.database = psycopg.connect(self.dsn, autocommit=True)
        self.client = self.run(self._open)
        self.start_worker()
        self.rows("CREATE TABLE canary (sings boolean)")
        self.rows("INSERT INTO canary VALUES (true)")
        self.objects = self.rows(_SCHEMA_OBJECTS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop_worker()
            self.run(self.client.__aexit__, None, None, None)
        finally:
            self.database.close()
            self._portal_context.__exit__(kind, error, trace)
            logging.getLogger("zart").removeHandler(self._complaints)

    async def _open(self) -> Client:
        return await Client(self.dsn).__aenter__()

    def start_worker(self) -> None:
        async def start() -> Worker:
            return await Worker(self.dsn, self._registry, self._config).__aenter__()

        self._worker = self.run(start)

    def stop_worker(self) -> None:
        if self._worker is not None:
            self.run(self._worker.__aexit__, None, None, None)
            self._worker = None

    # ------------------------------------------------------------ what tests do

    def run(self, action: Callable[..., Awaitable[T] | Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Await `action(*arguments)` on the worker's loop."""
        return self._portal.call(action, *arguments)

    def call(self, action: Callable[..., Awaitable[T]], *arguments: Any, **options: Any) -> T:
        """The same, with named arguments."""

        async def called() -> T:
            return await action(*arguments, **options)

        return self.run(called)

    def rows(self, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        cursor = self.database.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []

    def until_ended(self, id: str, *, within: float = 10) -> str:
        """Until an execution has come to a state that says why it goes no further; that state."""

        async def ended() -> str | None:
            status = (await self.client.status(id)).status
            return status if status in ENDS else None

        return str(self.run(lambda: until(ended, f"an end of {id!r}", within=within)))

    def quiet(self) -> Sequence[str]:
        """The tracebacks in the log since this was asked last."""
        said, self._complaints.tracebacks = self._complaints.tracebacks, []
        return said

    # ------------------------------------------------------------ what must hold

    def check(self, *, within: float = 5) -> None:
        """The worker lives and works, and nothing was made or unmade in the database."""
        number = next(self._numbers)

        async def run_innocent() -> int:
            async with asyncio.timeout(within):
                return await self.client.start_and_wait(innocent, number)

        assert self.run(run_innocent) == number * 2 + 1
        self.check_objects()

    def check_objects(self) -> None:
        assert self.rows("SELECT sings FROM canary") == [(True,)]
        assert self.rows(_SCHEMA_OBJECTS) == self.objects
