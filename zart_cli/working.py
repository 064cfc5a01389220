"""`zart worker`, and what `zart dev` shares with it: a worker that runs until it is told to stop."""

import asyncio
import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import click

import zart
from zart.loops import loop_factory
from zart_cli.app import app_option, load_registry
from zart_cli.children import Stopping, hear_on_loop, run_children
from zart_cli.database import Database, database_options
from zart_cli.logs import log_to_stderr
from zart_cli.watching import Watching, watching_options

_STEP_THREAD: Final = "AnyIO worker thread"
_THREADS_END_WITHIN: Final = 0.3  # seconds; those that are idle have been told to end

_log = logging.getLogger("zart.cli")

_HELP: Final = {
    "poll_interval": "How often to look for work where no notification can come.",
    "max_tasks_per_poll": "How many executions to claim in one go.",
    "max_concurrent_tasks": "How many executions may run at once.",
    "max_threads": "Threads for plain def steps.",
    "shutdown_timeout": "How long a shutdown waits for running steps.",
    "orphan_timeout": "A worker not heard of for so long is taken for dead.",
    "heartbeat_interval": "How often this worker says that it lives.",
    "wedge_timeout": "An event loop blocked for so long ends the process; 10 x orphan-timeout unless given.",
    "max_recoveries": "Takeovers in a row, without progress, after which an execution is blocked.",
    "max_inflight_steps": "Live steps of one execution.",
    "max_parked_bodies": "So many bodies that wait are kept in memory, to go on without a replay.",
    "queues": "Only this queue; may be repeated, or name several with commas. Default: all of the registry.",
    "retention": "Prune what ended longer ago, for all workers. ZART_RETENTION says it too.",
    "keep_ids": "Keep the ids of what is pruned until they are so old. ZART_KEEP_IDS says it too.",
}
_VARIABLES: Final = {"retention": "ZART_RETENTION", "keep_ids": "ZART_KEEP_IDS"}
"""What concerns the database is said once for all of its workers."""


def _fields() -> Iterator[inspect.Parameter]:
    """The fields of WorkerConfig, in their order."""
    yield from list(inspect.signature(zart.WorkerConfig.__init__).parameters.values())[1:]


def worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of WorkerConfig, in kebab case; `read_config` takes them back out."""
    for field in reversed(list(_fields())):
        name = "--" + field.name.replace("_", "-")
        about = _HELP[field.name]
        if field.name == "queues":
            option = click.option(name, multiple=True, metavar="QUEUE", help=about)
        elif isinstance(field.default, int):
            option = click.option(name, type=int, help=f"{about}  [default: {field.default}]")
        else:
            default = f"  [default: {field.default}]" if field.default is not None else ""
            option = click.option(
                name, metavar="DURATION", help=about + default, envvar=_VARIABLES.get(field.name)
            )
        command = option(command)
    return command


def read_config(options: dict[str, Any]) -> zart.WorkerConfig:
    """The config that the options say; those not given keep their default. Raises UsageError as WorkerConfig does."""
    given = {field.name: options[field.name] for field in _fields() if options[field.name] is not None}
    queues = tuple(queue for names in given.pop("queues", ()) for queue in names.split(",") if queue)
    return zart.WorkerConfig(**given, queues=queues)


@click.command(short_help="Run executions of an app's durable functions.")
@app_option
@click.option(
    "--processes",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="So many workers, each a process with all of the settings below for itself.",
)
@worker_options
@watching_options
@database_options
def worker(database: Database, app: str | None, watching: Watching, processes: int, **options: Any) -> None:
    """Claim executions of an app's durable functions and run them.

    Stops on SIGTERM or Ctrl-C: it claims no more, lets running steps end within --shutdown-timeout and hands the rest
    over at once. A second signal ends the process where it stands. With --processes, one that is killed starts anew.
    """
    config = read_config(options)
    log_to_stderr(watching.log_level, form=watching.log_format)
    registry = load_registry(app)  # with several processes: what is wrong with it is said once
    watching.check()
    address = database.open()
    if processes == 1:
        with watching.on():
            work(address.dsn, database.schema, registry, config)
        return
    plan = _Plan(app=app, dsn=address.dsn, schema=database.schema, config=config, watching=watching)
    if code := run_children(_work_in_child, (plan,), processes):
        click.get_current_context().exit(code)


@dataclass(frozen=True, kw_only=True, repr=False)
class _Plan:
    """What each of several processes is told."""

    app: str | None
    dsn: str
    schema: str
    config: zart.WorkerConfig
    watching: Watching


def _work_in_child(number: int, plan: _Plan) -> None:
    log_to_stderr(plan.watching.log_level, process=number, form=plan.watching.log_format)
    registry = load_registry(plan.app)
    with plan.watching.on(number):
        work(plan.dsn, plan.schema, registry, plan.config)


def work(
    dsn: str,
    schema: str,
    registry: zart.Registry,
    config: zart.WorkerConfig,
    on_start: Callable[[], None] | None = None,
) -> None:
    """Run a worker in this process until a signal stops it; on uvloop where that is installed."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_work(dsn, schema, registry, config, on_start))
    _leave_threads()


async def _work(
    dsn: str,
    schema: str,
    registry: zart.Registry,
    config: zart.WorkerConfig,
    on_start: Callable[[], None] | None,
) -> None:
    running = zart.Worker(zart.Client(dsn, schema=schema), registry, config)
    running.exit_when_wedged = True
    hear_on_loop(Stopping(running.stop))
    if on_start is not None:
        on_start()
    await running.run()
    _log.info("stopped")


def _leave_threads() -> None:
    """End the process here if a plain `def` step still runs: its execution was given back, its thread cannot be cut,
    and Python would wait for it."""
    deadline = time.monotonic() + _THREADS_END_WITHIN
    threads = [thread for thread in threading.enumerate() if thread.name == _STEP_THREAD]
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    left = sum(thread.is_alive() for thread in threads)
    if left:
        _log.warning("%d threads of plain def steps still run; the process ends without them", left)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
