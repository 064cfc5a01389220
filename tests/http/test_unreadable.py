"""A service whose keys do not decrypt what is stored."""

from pathlib import Path

import pytest

from tests.support.calling import calling, token_file
from tests.support.keys import use_keys
from tests.support.running import working
from zart import durable
from zart.http import create_app

pytestmark = pytest.mark.stores_plain(reason="has keys of its own, or none")


@durable("echo")
async def echo(text: str) -> str:
    return text


async def test_how_it_ended_is_told_without_a_key(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may not see the result is told as much as where it can be read; who may is told which key it needs."""
    use_keys(monkeypatch, "k1")
    async with working(dsn, echo) as client:
        await client.start_and_wait(echo, "secret", id="x", timeout="30s")
    use_keys(monkeypatch)
    async with create_app(dsn, token_file=token_file(tmp_path)) as api:
        async with calling(api, "reader") as http:
            answer = await http.get("/api/v1/executions/x/result")
            assert (answer.status_code, answer.json()) == (
                200,
                {"execution_id": "x", "status": "completed", "failure": None},
            )
        async with calling(api, "auditor") as http:
            answer = await http.get("/api/v1/executions/x/result")
            assert answer.status_code == 422
            assert "encrypted with the key 'k1'" in answer.json()["detail"]
