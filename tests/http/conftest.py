"""Applications over a database of the test's own."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.calling import calling, token_file
from zart.http import create_app
from zart.http.application import HttpApi


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZART_HTTP_TOKEN", raising=False)


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[HttpApi]:
    """Without tokens: this machine may do everything."""
    async with create_app(dsn) as api:
        yield api


@pytest.fixture
async def http(app: HttpApi) -> AsyncIterator[httpx.AsyncClient]:
    """This machine, which calls it."""
    async with calling(app) as client:
        yield client


@pytest.fixture
async def guarded(dsn: str, tmp_path: Path) -> AsyncIterator[HttpApi]:
    """With the tokens of `tests.support.calling`."""
    async with create_app(dsn, token_file=token_file(tmp_path)) as api:
        yield api
