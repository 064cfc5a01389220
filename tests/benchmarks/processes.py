"""Workers in processes of their own, as `zart worker` runs them."""

import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.processes import Crew


@asynccontextmanager
async def two_workers(dsn: str, app: str, **options: str) -> AsyncGenerator[Crew]:
    """Two of `app`; they run when the block begins and are gone when it ends.

    They notice everything soon unless `options`, by names of WorkerConfig, say otherwise: see `Crew.begin`.
    """
    with tempfile.TemporaryDirectory(prefix="zart-bench-") as directory:
        async with Crew(dsn, Path(directory), quiet=True) as crew:
            await crew.pair(app, **options)
            yield crew
