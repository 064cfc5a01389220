"""Kill -9 a worker in the middle of its work and watch another one finish it: `make demo`.

The steps are those of `onboarding.py`. Each of them makes one call to the world outside, and the world
notes every call in a file (see `world.py`). That file, not Zart, is the witness: whatever was recorded
when the worker died must stand in it exactly once at the end. Exit code 0 says that it does; 1 comes with
what does not.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

import zart
from examples.onboarding import Signup, onboarding
from examples.stage import database

USERS = ("ann", "ben", "cleo")
SERVICE_OF_STEP = {
    "send-welcome-mail": "mail welcome",
    "create-customer": "billing new",
    "provision": "cluster workspace",
    "activate": "billing activate",
}
"""The call that each step makes: the service, and the first word of what it is asked."""
ZART = str(Path(sys.executable).with_name("zart"))
PATIENCE_SECONDS = 20


class Unproven(Exception):  # noqa: N818
    """The demo did not show what it promises; the text says what happened instead."""


@dataclass(frozen=True)
class Call:
    """A line of the ledger."""

    pid: int
    user: str
    step: str


@dataclass(frozen=True)
class Ledger:
    """The file in which the world outside notes each call."""

    path: Path

    def calls(self) -> list[Call]:
        return [self._read(line) for line in self.path.read_text().splitlines()]

    @staticmethod
    def _read(line: str) -> Call:
        pid, service, about = line.split("\t")
        said = f"{service} {about}"
        step = next(step for step, words in SERVICE_OF_STEP.items() if said.startswith(words))
        return Call(pid=int(pid), user=next(user for user in USERS if user in about), step=step)


@dataclass(frozen=True)
class Stage:
    """Where the demo plays: a database, two workers, and the world's ledger."""

    dsn: str
    ledger: Ledger
    workers: dict[str, subprocess.Popen[bytes]]

    def name_of(self, pid: int) -> str:
        return next((name for name, worker in self.workers.items() if worker.pid == pid), f"process {pid}")


def main() -> None:
    began = time.monotonic()
    say("A PostgreSQL server of its own, two workers, three customers who sign up.")
    with stage() as on:
        asyncio.run(play(on))
    say(f"Took {time.monotonic() - began:.0f} seconds.")


async def play(on: Stage) -> None:
    async with zart.Client(on.dsn) as client:
        handles = {}
        for user in USERS:
            signup = Signup(user=user, email=f"{user}@example.com")
            handles[user] = await client.start(onboarding, signup, id=f"onboarding-{user}")
        died = await kill_in_the_middle(on)
        recorded = await recorded_steps(on)
        say(f"    Recorded so far: {count(len(recorded), 'step')}. Those must never run again.")

        say("The other worker takes over.")
        for user, handle in handles.items():
            await until_waiting(on, user, handle)
        say("    All three now wait for a click in a mail, for up to 48 hours. They click:")
        for user in USERS:
            command(on, "event", f"onboarding-{user}", "email-verified", "--data", '{"ip": "192.0.2.7"}')
        for user, handle in handles.items():
            url = await handle.result(timeout=PATIENCE_SECONDS)
            if url != f"https://customer-{user}.example.com":
                raise Unproven(f"{user}'s result is {url!r}")
        say(f"    All three are aboard. The story of {died.user}'s, in whose midst the worker died:")
        command(on, "show", f"onboarding-{died.user}")
    prove(on, died, recorded)


async def kill_in_the_middle(on: Stage) -> Call:
    """Wait for the first call of a `provision` step, and kill the process that made it before it can end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (begun := [call for call in on.ledger.calls() if call.step == "provision"]):
        check_alive(on, deadline, "no worker began to provision anything")
        await asyncio.sleep(0.01)
    call = begun[0]
    victim = on.name_of(call.pid)
    os.kill(call.pid, signal.SIGKILL)
    on.workers[victim].wait()
    say(f"kill -9 {call.pid}: {victim} dies in the middle of provisioning {call.user}'s workspace.")
    return call


async def recorded_steps(on: Stage) -> set[tuple[str, str]]:
    """What stands in the journal: (user, step)."""
    query = "SELECT execution_id, name FROM zart_v_steps WHERE kind = 'step' AND state = 'completed'"
    async with await psycopg.AsyncConnection.connect(on.dsn, autocommit=True) as connection:
        rows = await (await connection.execute(query)).fetchall()
    return {(execution_id.removeprefix("onboarding-"), name) for execution_id, name in rows}


async def until_waiting(on: Stage, user: str, handle: zart.ExecutionHandle[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (execution := await handle.status()).status != "waiting":
        check_alive(on, deadline, f"{user}'s onboarding is {execution.status} and was not taken over")
        await asyncio.sleep(0.05)


def prove(on: Stage, died: Call, recorded: set[tuple[str, str]]) -> None:
    """Hold the ledger against what was recorded when the worker died."""
    calls = on.ledger.calls()
    times = Counter((call.user, call.step) for call in calls)
    wrong = [
        f"{user}'s {step} was recorded before the kill and was run {count(times[user, step], 'time')}"
        for user, step in sorted(recorded)
        if times[user, step] != 1
    ]
    for user in USERS:
        for step in SERVICE_OF_STEP:
            # What the dead worker had begun and not recorded runs again: nobody can know how far it came.
            cut_off = (user, step) not in recorded and Call(pid=died.pid, user=user, step=step) in calls
            if not 1 <= times[user, step] <= (2 if cut_off else 1):
                wrong.append(f"{user}'s {step} was run {count(times[user, step], 'time')}")
    if times[died.user, died.step] != 2:
        wrong.append(f"{died.user}'s {died.step}, which was cut off, was not run again")
    if wrong:
        raise Unproven("; ".join(wrong))
    twice = sorted(f"{user}'s {step}" for (user, step), ran in times.items() if ran == 2)
    say("The world outside kept its own list of calls, and it agrees:")
    say(f"    {len(recorded)} recorded steps, each called exactly once in all.")
    say(f"    cut off before they were recorded, hence called again: {', '.join(twice)}.")
    say(f"    {len(times)} steps for three customers, all done. Nothing lost, nothing recorded twice.")


def check_alive(on: Stage, deadline: float, complaint: str) -> None:
    if all(worker.poll() is not None for worker in on.workers.values()):
        raise Unproven("both workers ended by themselves")
    if time.monotonic() > deadline:
        raise Unproven(f"{complaint} within {PATIENCE_SECONDS} seconds")


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """Set it all up, and show the workers' logs if it goes wrong."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zart-demo-")))
        ledger = Ledger(place / "ledger")
        ledger.path.touch()
        dsn = stack.enter_context(database())
        asyncio.run(zart.migrate(dsn))
        workers = {
            name: stack.enter_context(worker(dsn, ledger, place / f"{name}.log"))
            for name in ("worker-1", "worker-2")
        }
        try:
            yield Stage(dsn=dsn, ledger=ledger, workers=workers)
        except BaseException:
            for log in sorted(place.glob("*.log")):
                sys.stderr.write(f"---- {log.name}\n{log.read_text(errors='replace')[-4000:]}\n")
            raise


@contextlib.contextmanager
def worker(dsn: str, ledger: Ledger, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A `zart worker` process, quick to notice that another is dead."""
    quick = ("--orphan-timeout", "1500ms", "--heartbeat-interval", "300ms", "--max-tasks-per-poll", "2")
    environment = os.environ | {
        "EXAMPLES_LEDGER": str(ledger.path),
        "EXAMPLES_SECONDS_PER_CALL": "0.4",
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [ZART, "worker", "--app", "examples.onboarding:registry", "--dsn", dsn, *quick],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=8)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def command(on: Stage, *arguments: str) -> None:
    """Run a `zart` command as anyone would, and show it."""
    say(f"$ zart {shlex.join(arguments)}")
    subprocess.run(
        [ZART, *arguments],
        check=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"ZART_DATABASE_URL": on.dsn},
    )


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        main()
    except (Unproven, zart.ZartError, subprocess.CalledProcessError) as problem:
        print(f"NOT PROVEN: {problem}", file=sys.stderr)
        sys.exit(1)
