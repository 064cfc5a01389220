"""`zart dev`: everything at once on a developer's machine."""

import asyncio
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import zart
from zart._postgres import embedded
from zart.config import EMBEDDED, mask_dsn
from zart_cli.app import app_option, load_registry
from zart_cli.database import DIRECTORY, Database
from zart_cli.logs import log_to_stderr
from zart_cli.reloading import run_reloading
from zart_cli.samples import sample_data
from zart_cli.watching import Watching, watching_options
from zart_cli.working import read_config, work, worker_options


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """What the worker's process is told; it travels to the child under --reload."""

    app: str | None
    address: str
    place: str
    """How to say where the database is, without a password."""
    schema: str
    config: zart.WorkerConfig
    watching: Watching


@click.command(short_help="Run an app here: server, tables, worker.")
@app_option
@click.option("--reload", is_flag=True, help="Start the worker anew when a .py file below here changes.")
@click.option(
    "--dsn", metavar="DSN", help="A database of your own instead of the one in .zart/. No variable is read."
)
@click.option("--schema", default="public", show_default=True, help="The schema of Zart's tables.")
@worker_options
@watching_options
def dev(
    app: str | None, reload: bool, dsn: str | None, schema: str, watching: Watching, **options: Any
) -> None:
    """Run an app here: a PostgreSQL server in .zart/, migrated, and a worker.

    Commands in another terminal, here or in a directory below, find the server by themselves. The data stays in .zart/
    for the next time; the server ends with this command.
    """
    config = read_config(options)
    log_to_stderr(watching.log_level, form=watching.log_format)
    if not reload:
        load_registry(app)  # what is wrong with it is said before a server is started
    watching.check()
    address, place = _start_database(dsn, schema)
    asyncio.run(zart.migrate(address, schema=schema))
    plan = Plan(app=app, address=address, place=place, schema=schema, config=config, watching=watching)
    if reload:
        run_reloading(_run_in_child, (plan,), Path.cwd())
    else:
        _run(plan)


def _start_database(dsn: str | None, schema: str) -> tuple[str, str]:
    """Its address, and how to say where it is."""
    if dsn is not None and dsn != EMBEDDED:
        address = Database(dsn=dsn, schema=schema).find()
        return address.dsn, mask_dsn(address.dsn)
    server = embedded.start(Path(DIRECTORY))
    return server.dsn(), f'{DIRECTORY}/ (psql "$(zart dsn)")'


def _run(plan: Plan) -> None:
    registry = load_registry(plan.app)
    registry.freeze()
    with plan.watching.on():
        work(
            plan.address,
            plan.schema,
            registry,
            plan.config,
            on_start=lambda: click.echo(_greeting(plan, registry)),
        )


def _run_in_child(plan: Plan) -> None:
    """The process under --reload."""
    log_to_stderr(plan.watching.log_level, form=plan.watching.log_format)
    _run(plan)


def _greeting(plan: Plan, registry: zart.Registry) -> str:
    """What was found, and the next two commands to paste."""
    specs = {
        durable.spec.name + (durable.spec.version or ""): durable for durable in registry.durables.values()
    }
    durables = [specs[key] for key in sorted(specs)]
    lines = [f"app        {plan.app}", f"database   {plan.place}", f"schema     {plan.schema}"]
    title = "functions"
    for durable in durables:
        version = f" version {durable.spec.version}" if durable.spec.version is not None else ""
        queues = ", ".join(plan.config.queues or (durable.spec.queue,))
        lines.append(f"{title:<10} {durable.name}{version}, queue {queues}")
        title = ""
    if durables:
        first = durables[0]
        data = sample_data(first)
        words = ["zart", "start", first.name, "--id", "first"]
        words += ["--version", first.spec.version] if first.spec.version is not None else []
        words += ["--data", data] if data is not None else []
        common = [] if plan.schema == "public" else ["--schema", plan.schema]
        common += [] if plan.place.startswith(DIRECTORY) else ["--dsn", plan.place]
        lines += [
            "",
            "In another terminal, here:",
            f"  {shlex.join(words + common)}",
            f"  {shlex.join(['zart', 'show', 'first', *common])}",
        ]
    return "\n".join(lines) + "\n"
