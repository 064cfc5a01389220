"""Encryption at rest, with real processes: worker and commands read the same settings."""

from pathlib import Path

import pytest

from tests.support.command import Command
from tests.support.keys import keys, use_keys

pytestmark = pytest.mark.stores_plain(reason="has keys of its own, or none")

APP = """
import asyncio
import msgspec
import zart
from zart import durable, step


class Refused(Exception):
    pass


@step("ask")
async def ask(card: str) -> str:
    zart.progress({"asked": card})
    raise Refused(f"{card} was refused")


@durable("pay", max_retries="fixed(1, 10ms)")
async def pay(card: str) -> str:
    return await ask(card)


@durable("greet")
async def greet(name: str) -> str:
    return f"hello {name}, {await zart.wait_for_event('go')}"


registry = zart.Registry(pay, greet)
"""


@pytest.fixture
def keyed(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`zart` with a file of keys."""
    use_keys(monkeypatch)
    (tmp_path / "shop.py").write_text(APP)
    file = tmp_path / "keys"
    file.write_text(f"# of the shop\n{keys('k1')}\n")
    file.chmod(0o600)
    monkeypatch.setenv("ZART_PAYLOAD_KEYS_FILE", str(file))
    return Command(tmp_path, dsn)


@pytest.fixture
def keyless(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyed: Command) -> Command:
    """`zart` without any."""
    use_keys(monkeypatch)
    return Command(tmp_path, dsn)


def test_commands_decrypt_with_the_keys_and_say_what_is_encrypted_without(
    keyed: Command, keyless: Command
) -> None:
    """show, status, list and wait tell everything with the keys; without them each names the key, and none fails with
    a traceback."""
    with keyed.running("worker", "--app", "shop:registry") as worker:
        assert "payloads are encrypted with the key k1" in worker.until("runs greet, pay")
        assert keyed("start", "greet", "--id", "ann", "--data", '"ann"').returncode == 0
        assert keyed("event", "ann", "go", "--data", '"welcome"').returncode == 0
        done = keyed("wait", "ann", "--timeout", "30s")
        assert (done.returncode, done.stdout) == (0, '"hello ann, welcome"\n')
        keyed("start", "pay", "--id", "order", "--data", '"card-4711"')
        failed = keyed("wait", "order", "--timeout", "30s")
        assert failed.returncode == 1
        assert "card-4711 was refused" in failed.stderr

    for command in (("status", "order"), ("show", "order"), ("list",)):
        told = keyed(*command)
        assert (told.returncode, "card-4711 was refused" in told.stdout) == (0, True), command
        told = keyless(*command)
        assert (told.returncode, told.stderr) == (0, ""), command
        assert "encrypted (key k1)" in told.stdout, command
        assert "card" not in told.stdout, command
    shown = keyless("show", "order").stdout
    assert shown.count("encrypted (key k1)") > 2  # of the attempts and of the body's retry, too

    refused = keyless("wait", "ann")
    assert refused.returncode == 1
    assert "is encrypted with the key 'k1'" in refused.stderr
    assert "Traceback" not in refused.stderr
    ended = keyless("wait", "order")
    assert (ended.returncode, "encrypted (key k1)" in ended.stderr) == (1, True)


def test_settings_that_cannot_be_used_end_a_command_in_one_line(keyed: Command, tmp_path: Path) -> None:
    """Before anything is read or stored."""
    (tmp_path / "keys").chmod(0o644)
    for command in (("list",), ("worker", "--app", "shop:registry"), ("start", "greet", "--data", "1")):
        refused = keyed(*command)
        assert refused.returncode == 2, command
        assert "can be read or changed by others" in refused.stderr
        assert "Traceback" not in refused.stderr
