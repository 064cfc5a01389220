"""The benchmark's table: markdown that is fit to be read in a terminal, with every figure and how it came about."""

from pathlib import Path

import pytest

from tests.benchmarks import report
from tests.benchmarks.figures import Figure, Target, percentile
from tests.benchmarks.report import CaseTold, Report, number, rendered, table


def a_report(**changed: object) -> Report:
    fields: dict[str, object] = {
        "scale": 1.0,
        "machine": {
            "system": "Linux",
            "processors": 2,
            "load_at_the_start": 0.2,
            "load_at_the_end": 2.1,
            "python": "3.11.7",
            "at": "2026-11-26 12:00 UTC",
        },
        "server": {"server_version": "18.6", "fsync": "on"},
        "setups": {"Zart": "one worker", "DBOS": "one process"},
        "versions": {"Zart": {"zart": "0.1.0"}, "DBOS": {"dbos": "3.4.0"}},
        "cases": [CaseTold(letter="a", title="throughput", told="Callers run executions.")],
        "figures": [
            figure("DBOS", "1 caller", "steps", 137.0, 149.0, 73.0),
            figure("Zart", "1 caller", "steps", 307.0, 244.0, 552.0),
            figure("Zart", "100 callers", "steps", 12_345.0),
            figure("Zart", "1 caller", "processor time", 12.94),
        ],
        "targets": [
            Target(case="a", told="against DBOS", found=2.24, wanted=4),
            Target(case="a", told="commits per step", found=0.05, wanted=0.1, at_least=False),
        ],
    }
    return Report(**fields | changed)  # type: ignore[arg-type]


def figure(product: str, setup: str, quantity: str, *values: float) -> Figure:
    return Figure(
        case="a", product=product, setup=setup, quantity=quantity, unit="steps/s", values=list(values)
    )


def test_a_case_is_a_table_with_median_and_range() -> None:
    """Zart stands first, the lines of one set-up stand together, and a single value has no range."""
    told = rendered(a_report()).splitlines()
    assert told[:4] == ["## a: throughput", "", "Callers run executions.", ""]
    assert told[4:10] == [
        "| product | how         | quantity       | median | lowest to highest | unit    | rounds |",
        "| ------- | ----------- | -------------- | -----: | ----------------: | ------- | -----: |",
        "| Zart    | 1 caller    | steps          |    307 |        244 to 552 | steps/s |      3 |",
        "|         |             | processor time |   12.9 |                   | steps/s |      1 |",
        "| Zart    | 100 callers | steps          | 12,345 |                   | steps/s |      1 |",
        "| DBOS    | 1 caller    | steps          |    137 |       73.0 to 149 | steps/s |      3 |",
    ]


def test_targets_say_what_was_found_and_whether_it_is_met() -> None:
    told = rendered(a_report())
    assert "| a    | against DBOS     |   2.24 |  at least 4 | no  |" in told
    assert "| a    | commits per step | 0.0500 | at most 0.1 | yes |" in told


def test_set_ups_versions_server_and_machine_are_told() -> None:
    told = rendered(a_report())
    assert "- **DBOS** (dbos 3.4.0): one process." in told
    assert "PostgreSQL 18.6 on the same machine, fsync on." in told
    assert (
        "2 processors, Linux, Python 3.11.7; 2026-11-26 12:00 UTC; load 0.2 at the start and 2.1 at the"
        in told
    )
    assert "Scale" not in told
    assert "Other programs" not in told


def test_who_is_left_out_is_told_with_the_reason() -> None:
    """An empty table would look like a product that was never thought of."""
    told = rendered(a_report(left_out={"Restate": "cannot be installed: no network"}))
    assert "- **Restate** is left out: cannot be installed: no network" in told


@pytest.mark.parametrize("loads", [(1.5, 2.0), (0.1, 4.5)], ids=["before", "meanwhile"])
def test_a_machine_that_was_busy_is_told_of(loads: tuple[float, float]) -> None:
    started, ended = loads
    machine = a_report().machine | {"load_at_the_start": started, "load_at_the_end": ended}
    assert "**Other programs kept the processors busy**" in rendered(a_report(machine=machine))


def test_a_run_at_another_scale_is_told_of() -> None:
    assert "**Scale 0.05**" in rendered(a_report(scale=0.05))


def test_a_case_without_figures_says_so() -> None:
    assert "Nothing was measured." in rendered(a_report(figures=[]))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (12_345.6, "12,346"),
        (99.96, "100"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.0123, "0.0123"),
        (0.0, "0"),
        (-3.0, "-3.00"),
    ],
)
def test_numbers_have_three_figures(value: float, told: str) -> None:
    assert number(value) == told


def test_a_bar_in_a_cell_makes_no_column() -> None:
    assert table(["a"], [["x|y"]]) == ["| a    |", "| ---- |", "| x\\|y |"]


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7.0], 0.99)) == (50, 99, 7)


def test_the_page_is_made_of_what_both_runs_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure in it is written by hand."""
    monkeypatch.setattr(report, "OUTPUT", tmp_path)
    monkeypatch.setattr(report, "PAGE", tmp_path / "benchmarks.md")
    with pytest.raises(SystemExit, match="nothing was measured"):
        report.document()
    report.write(a_report(), tmp_path / "bench.json")
    report.document()
    page = (tmp_path / "benchmarks.md").read_text()
    assert "## make bench\n\n### a: throughput\n" in page
    assert "make bench-long\n" not in page
