"""The executions below one, as `zart show` draws them.

children
├── order-7~0f3a   pack   completed in 1.2s
└── order-7~91bc   ship   waiting for 3.4s
    └── order-7~c2d0   label   failed in 0.2s
"""

import datetime as dt
from typing import Final

from rich.markup import escape
from rich.tree import Tree

from zart import Client, Execution, History
from zart_cli.tables import console, function, styled_status
from zart_cli.times import short_duration

_MOST: Final = 100
"""So many executions are shown at most."""


async def read_children(client: Client, history: History) -> Tree | None:
    """The tree below an execution; None when it has no children."""
    left = [_MOST]
    tree = Tree("children")
    await _add(client, history, tree, left)
    return tree if tree.children else None


async def _add(client: Client, history: History, tree: Tree, left: list[int]) -> None:
    ids = [record.child_id for record in history.records if record.child_id is not None]
    for number, child_id in enumerate(ids):
        if not left[0]:
            tree.add(f"[dim]and {len(ids) - number} more: zart list --id-prefix[/]")
            return
        left[0] -= 1
        child = await client.history(child_id)
        await _add(client, child, tree.add(_line(child.execution)), left)


def _line(execution: Execution) -> str:
    ended = execution.finished_at
    lasted = short_duration((ended or dt.datetime.now(dt.UTC)) - execution.created_at)
    told = f"in {lasted}" if ended is not None else f"for {lasted}"
    return f"{escape(execution.id)}   {escape(function(execution))}   {styled_status(execution)} {told}"


def print_children(tree: Tree | None) -> None:
    if tree is not None:
        out = console()
        out.print()
        out.print(tree, soft_wrap=True)
