"""Without faults every workflow of the corpus ends as it says, and each of its effects happens exactly once."""

import asyncio
from pathlib import Path

import pytest

from tests.crashes.corpus import WORKFLOWS, registry
from tests.crashes.effects import effects
from tests.crashes.workflow import Ended
from tests.support.running import fast, hurrying
from zart import Client, Worker


async def test_the_whole_corpus_at_once(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All workflows beside each other in one worker."""
    monkeypatch.setenv("ZART_TEST_PLACE", str(tmp_path))

    async def run(name: str) -> tuple[str, Ended]:
        workflow = WORKFLOWS[name]
        await workflow.start(client, name)
        await workflow.outside(client, name, tmp_path)
        return name, await workflow.end(client, name, timeout=20)

    async with Client(dsn) as client, Worker(dsn, registry, fast()), hurrying(dsn):
        ends = await asyncio.gather(*(run(name) for name in WORKFLOWS))
    done = effects(tmp_path)
    problems = {
        name: found
        for name, ended in ends
        if (
            found := list(
                WORKFLOWS[name].problems(
                    ended,
                    [effect.what for effect in done if effect.execution.partition("~")[0] == name],
                    faultless=True,
                )
            )
        )
    }
    assert problems == {}
