"""Whom the benchmark compares with, and what it does where a peer is not to be had."""

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import peers
from tests.benchmarks.bench import ROOT, Bench, Options
from tests.benchmarks.cases.throughput import modes
from tests.benchmarks.peers import PEERS, Sides


def a_bench(**options: Any) -> Bench:
    server: Any = None
    return Bench(server, Options(**options))


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_every_package_is_pinned(peer: peers.Peer) -> None:
    """Else a table could not be measured again."""
    assert all("==" in package for package in peer.packages)
    assert all("@" in package[1:] for package in peer.node_packages)
    assert (ROOT / "tests" / "benchmarks" / "sides" / f"with_{peer.name.lower()}.py").is_file()


def test_a_mode_for_many_is_not_measured_with_one_caller() -> None:
    told = [contender.told for contender in modes(a_bench(callers=(1, 100)), "Absurd")]
    assert told == [
        "1 caller, 1 process",
        "100 callers, 1 process",
        "100 callers, 2 processes",
        "100 callers, 4 processes",
        "100 callers, 1 asynchronous process",
    ]


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a network the others are measured all the same."""
    monkeypatch.setattr(peers, "OUTPUT", tmp_path)
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    bench = a_bench(peers=("DBOS",))
    assert Sides(bench).products() == ["Zart"]
    assert bench.left_out["DBOS"].startswith("cannot be installed: ")
    assert "dbos" in bench.left_out["DBOS"]
    assert "DBOS is left out" in capsys.readouterr().err
