"""The benchmark's table: markdown that is fit to be read in a terminal, with every figure and how it came about."""

from pathlib import Path

import pytest

from tests.benchmarks import report
from tests.benchmarks.figures import Figure, Target, percentile
from tests.benchmarks.key_figures import Row, chosen
from tests.benchmarks.report import BEGIN, END, CaseTold, Report, filled, key_figures, number, rendered, table


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


def figure(product: str, setup: str, quantity: str, *values: float, case: str = "a") -> Figure:
    return Figure(
        case=case, product=product, setup=setup, quantity=quantity, unit="steps/s", values=list(values)
    )


def told_of(figures: list[Figure]) -> dict[str, dict[str, float]]:
    return {row.told: row.values for row in chosen(figures)}


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
    for name, page in (("PERFORMANCE", "performance.md"), ("README", "README.md")):
        monkeypatch.setattr(report, name, tmp_path / page)
        (tmp_path / page).write_text(f"# Performance\n\n{BEGIN}\n\nNothing.\n\n{END}\n\nThe rest.\n")
    with pytest.raises(SystemExit, match="nothing was measured"):
        report.document()
    report.write(a_report(), tmp_path / "bench.json")
    report.document()
    page = (tmp_path / "benchmarks.md").read_text()
    assert "## make bench\n\n### a: throughput\n" in page
    assert "make bench-long\n" not in page
    chosen_ones = (tmp_path / "performance.md").read_text()
    assert chosen_ones.startswith(f"# Performance\n\n{BEGIN}\n\n|")
    assert "| steps, 100 callers                 | steps/s | 12,345 |      |" in chosen_ones
    assert "Nothing." not in chosen_ones
    assert chosen_ones.endswith(f"{END}\n\nThe rest.\n")
    assert "[benchmarks](docs/reference/benchmarks.md)" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("place", [report.PERFORMANCE, report.README], ids=lambda place: place.name)
def test_a_page_has_a_place_for_figures(place: Path) -> None:
    """It says that no run was documented, or has the figures of one beside the page of all of them."""
    page = place.read_text()
    assert page.count(BEGIN) == page.count(END) == 1
    block = page.partition(BEGIN)[2].partition(END)[0].strip()
    assert block == "No run has been documented yet." or block.startswith("| ")
    assert report.PAGE.exists() == block.startswith("| ")


def test_figures_take_the_place_of_earlier_ones() -> None:
    page = f"before\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n"
    assert filled(filled(page, "new"), "newer") == page.replace("old", "newer")
    with pytest.raises(ValueError, match="no place for figures"):
        filled("a page", "new")


def test_each_product_is_chosen_in_the_set_up_in_which_it_did_best() -> None:
    """For a number of callers, among the modes with so many; what needs no callers stands beside the hundred."""
    figures = [
        figure("Zart", "1 caller", "steps", 300, 310, 320),
        figure("Zart", "100 callers", "steps", 4_000),
        figure("Zart", "100 at a time, all started by one call", "steps", 4_500),
        figure("DBOS", "1 caller, threads", "steps", 90),
        figure("DBOS", "1 caller, coroutines", "steps", 140),
        figure("DBOS", "100 callers, queue", "steps", 150),
        figure("DBOS", "32 callers, threads", "steps", 160),
        figure("PostgreSQL", "batches of 1,000 rows, 1 connection", "steps", 20_000),
        figure("PostgreSQL", "batches of 1,000 rows, 2 connections", "steps", 30_000),
        figure("PostgreSQL", "batches of 1,000 rows, 2 connections", "steps", 60_000, case="k"),
        figure("DBOS", "100 callers, queue", "processor time of an execution", 40, 42, 44),
        figure("Zart", "100 callers", "processor time of an execution", 2),
    ]
    assert told_of(figures) == {
        "steps, 1 caller": {"Zart": 310, "DBOS": 140},
        "steps, 100 callers": {"Zart": 4_000, "DBOS": 150, "PostgreSQL": 30_000},
        "steps, in whatever way it did best": {"Zart": 4_500, "DBOS": 160, "PostgreSQL": 30_000},
        "processor time of an execution of five steps, 100 callers": {"Zart": 2, "DBOS": 42},
    }


def test_both_latencies_are_of_the_same_set_up() -> None:
    result = "start to result of five steps"
    figures = [
        figure("DBOS", "apart", f"{result}, p50", 9, case="b"),
        figure("DBOS", "together", f"{result}, p50", 5, case="b"),
        figure("DBOS", "apart", f"{result}, p99", 10, case="b"),
        figure("DBOS", "together", f"{result}, p99", 20, case="b"),
        figure("Absurd", "apart", f"{result}, p50", 7, case="b"),
    ]
    assert told_of(figures) == {
        f"{result}, p50": {"DBOS": 5, "Absurd": 7},
        f"{result}, p99": {"DBOS": 20},
    }


def test_of_sizes_the_largest_is_chosen_and_told() -> None:
    """A run at another scale is told as what it was."""
    figures = [
        figure("Zart", "100 steps, one task", "claim to live", 3, case="e"),
        figure("Zart", "10000 steps, one task", "claim to live", 200, case="e"),
        figure("Zart", "10000 steps, 100 branches, gather", "claim to live", 400, case="e"),
        figure("Zart", "100 children", "time each", 2, case="f"),
        figure("Zart", "10000 children", "time each", 1, case="f"),
        figure("Zart", "500 scheduled steps", "time each", 3, case="f"),
        figure("Zart", "10000 scheduled steps, one of two workers killed", "time each", 4, case="f"),
    ]
    assert told_of(figures) == {
        "replay of 10,000 steps": {"Zart": 200},
        "time for each of 10,000 children": {"Zart": 1},
        "time for each of 500 scheduled steps": {"Zart": 3},
    }


def test_what_a_step_an_idle_worker_and_a_full_database_cost() -> None:
    figures = [
        figure("Zart", "1 caller, 5 steps each", "commits per step", 1.6, case="c"),
        figure("Zart", "100 callers, 5 steps each", "commits per step", 0.05, case="c"),
        figure("Zart", "100 callers, 100 steps each", "commits per step", 0.04, case="c"),
        figure("Zart", "1 caller, 5 steps each", "WAL bytes per step", 900, case="c"),
        figure("Zart", "100 callers, 100 steps each", "WAL bytes per step", 300, case="c"),
        figure("Zart", "an idle worker with LISTEN", "statements", 0.8, case="c"),
        figure("Zart", "a replay of 100 steps", "statements", 8, case="c"),
        figure("Zart", "empty", "start to result, p50", 5, case="d"),
        figure("Zart", "1,000 ready", "start to result, p50", 6, case="d"),
        figure("Zart", "5,000,000 finished", "start to result, p50", 7, case="d"),
        figure("Zart", "1,000 running", "more for each execution", 9_000, case="g"),
        figure("Zart", "100,000 waiting, 1,000 bodies kept", "more for each execution", 400, case="g"),
    ]
    assert told_of(figures) == {
        "commits per step: 1 caller, 5 steps each": {"Zart": 1.6},
        "commits per step: 100 callers, 5 steps each": {"Zart": 0.05},
        "WAL bytes per step: 100 callers, 100 steps each": {"Zart": 300},
        "statements: an idle worker with LISTEN": {"Zart": 0.8},
        "start to result of five steps, p50: empty database": {"Zart": 5},
        "start to result of five steps, p50: 5,000,000 finished, the slowest of all": {"Zart": 7},
        "memory of the worker for each: 1,000 running": {"Zart": 9_000},
    }


def test_what_was_not_measured_has_no_row() -> None:
    assert chosen([]) == []
    assert chosen([figure("Zart", "1 caller", "steps")]) == []
    rows = chosen([figure("Zart", "1 caller", "steps", 300)])
    assert rows[0] == Row(told="steps, 1 caller", unit="steps/s", values={"Zart": 300})
    assert [row.told for row in rows[1:]] == ["steps, in whatever way it did best"]


def test_a_short_table_has_what_was_compared_and_no_more() -> None:
    figures = [
        figure("Zart", "1 caller", "steps", 300),
        figure("DBOS", "1 caller, threads", "steps", 90),
        figure("Zart", "100 callers", "steps", 4_000),
    ]
    whole, short = (
        key_figures({"make bench": a_report(figures=figures)}, "all.md", only_compared=only)
        for only in (False, True)
    )
    assert "steps, 100 callers" in whole
    assert "steps, 1 caller" in short
    assert "steps, 100 callers" not in short


def test_the_chosen_figures_say_what_they_were_measured_on() -> None:
    told = key_figures({"make bench": a_report()}, "all.md")
    assert (
        "`make bench`: medians of one run, with PostgreSQL 18.6 and everything else on one machine of 2"
        in told
    )
    assert "Other programs" not in told
    assert "Scale" not in told
    busy = a_report(scale=0.05, machine=a_report().machine | {"load_at_the_end": 9.0})
    doubtful = key_figures({"make bench": busy, "make bench-long": a_report(figures=[])}, "all.md")
    assert "**Scale 0.05**" in doubtful
    assert "**Other programs kept the processors busy**" in doubtful
    assert "`make bench-long`: medians of one run" in doubtful
