"""The group of all commands."""

import importlib.metadata
import sys

try:
    __import__("psycopg")
except ImportError as missing:
    # Plain psycopg needs the system's libpq. Everything below imports it, so this cannot be said anywhere later.
    hint = "install PostgreSQL's client library (libpq), or: pip install 'psycopg[binary]'"
    sys.exit(f"zart: psycopg cannot be used ({str(missing).splitlines()[0].rstrip(':')}): {hint}")

import click

from zart.distribution import DISTRIBUTION
from zart_cli.dev import dev
from zart_cli.doctor.command import doctor
from zart_cli.exits import ZartGroup
from zart_cli.looking import dsn, list_, show, stats, status
from zart_cli.migrating import migrate
from zart_cli.pausing import pause, pauses, unpause
from zart_cli.repairing import delete, rerun, restart, retry_step, runs
from zart_cli.retention import prune
from zart_cli.sending import event, start, wait
from zart_cli.serving import serve
from zart_cli.steering import cancel, resume
from zart_cli.top.command import top
from zart_cli.workers import workers
from zart_cli.working import worker


@click.group(
    cls=ZartGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
The database is the one in --dsn, else in ZART_DATABASE_URL, else in DATABASE_URL, else that of a
running `zart dev`, found through the directory .zart/ here or above. The DSN "embedded" is a
server of your own under .zart/.

\b
Exit codes: 0 all well, 1 failed, cancelled or blocked, 2 wrong usage, 3 not found, 4 timed out.

\b
Completion: put one of these into your shell's start-up file.
  bash   eval "$(_ZART_COMPLETE=bash_source zart)"
  zsh    eval "$(_ZART_COMPLETE=zsh_source zart)"
  fish   _ZART_COMPLETE=fish_source zart | source""",
)
@click.version_option(importlib.metadata.version(DISTRIBUTION), prog_name="zart")
def cli() -> None:
    """Durable functions on the Postgres you already have."""


for command in (
    *(migrate, worker, dev, start, status, wait, event, list_, show, cancel, resume, stats, serve, dsn),
    *(runs, retry_step, restart, rerun, delete),
    *(pause, pauses, unpause),
    *(workers, top, doctor, prune),
):
    cli.add_command(command)
