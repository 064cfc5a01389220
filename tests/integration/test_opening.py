"""Clients and workers that begin while their database comes and goes."""

from tests.acceptance.apps.counting import ask
from tests.support.proxy import Proxy
from tests.support.running import worker_for
from zart import Client


async def test_a_client_opens_when_its_first_statements_are_lost(dsn: str) -> None:
    """The connection breaks in the middle of the first look at the database: the client looks again."""
    for passed in range(3):
        async with Proxy(dsn) as proxy:
            proxy.lose_answers(1, after=passed)
            async with Client(proxy.dsn) as client:
                assert (await client.stats()).workers == 0
            assert proxy.lost == 1


async def test_a_worker_starts_when_its_first_statements_are_lost(dsn: str) -> None:
    """Connections break in the middle of all that a worker does before it registers: it begins again, and runs."""
    for passed in range(6):
        async with Proxy(dsn) as proxy:
            proxy.lose_answers(1, after=passed)
            async with worker_for(proxy.dsn, ask), Client(dsn) as client:
                assert (await client.stats()).workers == 1
            assert proxy.lost == 1
