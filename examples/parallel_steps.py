"""Steps on every worker that is free: as many as the first one finds, with the failures looked at in the end.

Run it with `make example-parallel_steps`. Three workers share what one execution has scheduled. How many steps there
are is known only when it runs, and a page that cannot be had is no reason to throw the others away.
"""

import asyncio
from contextlib import AsyncExitStack

import zart
from examples.stage import stage
from zart import durable, step

SITE = {"/": ["/beer", "/cellar", "/old"], "/beer": ["/beer/smoked"], "/cellar": [], "/beer/smoked": []}


@step("links-of-{page}", retry="exponential(2, 50ms)")
async def links_of(page: str) -> list[str]:
    if page not in SITE:
        raise zart.NonRetryable(f"{page} is not there")
    return SITE[page]


@durable("site-map")
async def site_map(start: str) -> dict[str, str]:
    """Page after page, each level of links at once."""
    seen: dict[str, str] = {}
    level = [start]
    while level:
        handles = [zart.schedule_step(links_of, page) for page in level]
        found = await zart.wait_all(*handles, return_exceptions=True)
        following: list[str] = []
        for page, links in zip(level, found, strict=True):
            if isinstance(links, Exception):
                seen[page] = f"failed: {links}"
            else:
                seen[page] = f"{len(links)} links"
                following += [link for link in links if link not in seen]
        level = following
    return seen


registry = zart.Registry(site_map)


async def main() -> None:
    async with stage() as client, AsyncExitStack() as workers:
        for _ in range(3):
            await workers.enter_async_context(zart.Worker(client, registry))
        handle = await client.start(site_map, "/", id="site-map")
        for page, told in (await handle.result(timeout="30s")).items():
            print(f"{page:14}{told}")
        history = await client.history(handle.id)
        steps = [record.name for record in history.records if record.kind == "step"]
        print(f"{len(steps)} steps, each of them once: {len(set(steps)) == len(steps)}")


if __name__ == "__main__":
    asyncio.run(main())
