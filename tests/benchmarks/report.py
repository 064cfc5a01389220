"""The figures as JSON, as a table, as the page docs/reference/benchmarks.md, and the chosen ones in performance.md."""

import textwrap
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg

from tests.benchmarks.bench import OUTPUT, ROOT, Bench, Case, machine
from tests.benchmarks.figures import Figure, Target, to_json
from tests.benchmarks.key_figures import BARE, chosen

PAGE: Final = ROOT / "docs" / "reference" / "benchmarks.md"
README: Final = ROOT / "README.md"
PERFORMANCE: Final = ROOT / "docs" / "explanation" / "performance.md"
BEGIN: Final = "<!-- The figures of a run, written by `make bench-document`: do not edit. -->"
END: Final = "<!-- The end of the figures. -->"
_RUNS: Final = (("bench.json", "make bench"), ("bench-long.json", "make bench-long"))
_SETTINGS: Final = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "shared_buffers",
    "max_connections",
    "max_wal_size",
)
_SCALED: Final = (
    "**Scale {:g}**: sizes and durations were multiplied by it. Below 1 this is a look at whether the cases work, not "
    "a measurement."
)
_LOADED: Final = (
    "**Other programs kept the processors busy**: the figures are low, and the ratios blurred. Processor time is what "
    "such noise distorts least."
)


class CaseTold(msgspec.Struct, kw_only=True):
    letter: str
    title: str
    told: str


class Report(msgspec.Struct, kw_only=True):
    """One run of the benchmark."""

    scale: float
    left_out: dict[str, str] = {}
    """Peers that were asked for and could not be measured, and why."""
    machine: dict[str, Any]
    server: dict[str, str]
    setups: dict[str, str]
    versions: dict[str, dict[str, str]]
    cases: list[CaseTold]
    figures: list[Figure]
    targets: list[Target]


def described(bench: Bench, cases: Sequence[Case]) -> Report:
    with psycopg.connect(bench.server.dsn()) as connection:
        shown = {
            name: str((connection.execute("SELECT current_setting(%s)", (name,)).fetchone() or ("",))[0])
            for name in _SETTINGS
        }
    return Report(
        scale=bench.options.scale,
        left_out=bench.left_out,
        machine=machine() | {"load_at_the_start": bench.load_at_the_start},
        server=shown,
        setups=bench.setups,
        versions=bench.versions,
        cases=[CaseTold(letter=case.letter, title=case.title, told=case.told) for case in cases],
        figures=bench.figures,
        targets=bench.targets,
    )


def write(report: Report, path: Path) -> None:
    path.write_bytes(to_json(report) + b"\n")


def show(report: Report) -> None:
    """Print it for whoever ran it."""
    print(rendered(report))


def document() -> None:
    """The page of both runs, and the chosen figures in performance.md and README.md, from what they have written."""
    runs = {title: _read(OUTPUT / name) for name, title in _RUNS if (OUTPUT / name).exists()}
    if not runs:
        raise SystemExit(f"nothing was measured yet: there is no bench.json in {OUTPUT}")
    parts = [f"## {title}\n\n{rendered(report, level=3)}" for title, report in runs.items()]
    PAGE.write_text(
        "# Benchmarks\n\nWritten by `make bench-document` from what `make bench` and `make bench-long` measured; no "
        "figure is written\nby hand. Median, lowest and highest are of the rounds. What sets these figures is told in\n"
        "[performance](../explanation/performance.md).\n\n" + "\n".join(parts)
    )
    PERFORMANCE.write_text(filled(PERFORMANCE.read_text(), key_figures(runs, "../reference/benchmarks.md")))
    README.write_text(
        filled(README.read_text(), key_figures(runs, "docs/reference/benchmarks.md", only_compared=True))
    )


def filled(page: str, block: str) -> str:
    """The page with this between its two marks, whatever was there before."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no place for figures: {BEGIN} and {END}")
    return f"{before}{begin}\n\n{block.strip()}\n\n{end}{after}"


def key_figures(runs: Mapping[str, Report], page: str, *, only_compared: bool = False) -> str:
    """Markdown of the chosen figures of runs, by how each is started, and what they were measured on.

    `page` is where all of them are; `only_compared` leaves out what is Zart's alone.
    """
    rows = chosen([figure for report in runs.values() for figure in report.figures])
    if only_compared:
        rows = [row for row in rows if len(row.values) > 1]
    there = {product for row in rows for product in row.values}
    products = [
        *(product for product in ("Zart", BARE) if product in there),
        *sorted(there - {"Zart", BARE}),
    ]
    head = ["", "unit", *("the same rows, no engine" if product == BARE else product for product in products)]
    lines = table(
        head,
        [
            [
                row.told,
                "" if row.unit in {"each", "ratio", "count"} else row.unit,
                *(number(row.values[product]) if product in row.values else "" for product in products),
            ]
            for row in rows
        ],
        right=set(range(2, len(head))),
    )
    for title, report in runs.items():
        on, server = report.machine, report.server.get("server_version", "unknown")
        lines += [
            "",
            *_wrapped(
                f"`{title}`: medians of one run, with PostgreSQL {server} and everything else on one machine of "
                f"{on['processors']} processors, Python {on['python']}; {on['at']}. {_doubts(report)}"
            ),
        ]
    how = f"Every figure with its spread, and how it was measured: [benchmarks]({page})."
    return "\n".join([*lines, "", how])


def _read(path: Path) -> Report:
    return msgspec.json.decode(path.read_bytes(), type=Report)


def rendered(report: Report, *, level: int = 2) -> str:
    """Markdown that is also fit to be read in a terminal, with headings of this level."""
    titles = {case.letter: case for case in report.cases}
    letters = sorted({figure.case for figure in report.figures} | set(titles))
    parts = [
        *(_case(report, letter, titles.get(letter)) for letter in letters),
        _targets(report),
        _how(report),
    ]
    return "\n\n".join(f"{'#' * level} {part}" for part in parts if part) + "\n"


def _case(report: Report, letter: str, told: CaseTold | None) -> str:
    lines = [f"{letter}: {told.title}", "", *_wrapped(told.told), ""] if told is not None else [letter, ""]
    rows = []
    previous = ("", "")
    for figure in sorted(
        (figure for figure in report.figures if figure.case == letter and figure.values),
        key=lambda figure: _place(report, figure),
    ):
        line = (figure.product, figure.setup)
        rows.append(
            [
                *(line if line != previous else ("", "")),
                figure.quantity,
                number(figure.median),
                f"{number(figure.lowest)} to {number(figure.highest)}" if len(figure.values) > 1 else "",
                figure.unit,
                str(len(figure.values)),
            ]
        )
        previous = line
    if not rows:
        return "\n".join([*lines, "Nothing was measured."])
    head = ["product", "how", "quantity", "median", "lowest to highest", "unit", "rounds"]
    return "\n".join([*lines, *table(head, rows, right={3, 4, 6})])


def _place(report: Report, figure: Figure) -> tuple[int, int]:
    """Zart first, then what it is compared with; the lines of each in the order in which they were begun."""
    of_case = [other for other in report.figures if other.case == figure.case]
    products = list(dict.fromkeys(other.product for other in of_case))
    setups = list(dict.fromkeys(other.setup for other in of_case if other.product == figure.product))
    return (0 if figure.product == "Zart" else 1 + products.index(figure.product), setups.index(figure.setup))


def _targets(report: Report) -> str:
    if not report.targets:
        return ""
    rows = [
        [
            target.case,
            target.told,
            number(target.found),
            f"{'at least' if target.at_least else 'at most'} {target.wanted:.3g}",
            "yes" if target.met else "no",
        ]
        for target in report.targets
    ]
    return "\n".join(
        ["Targets", "", *table(["case", "target", "found", "wanted", "met"], rows, right={2, 3})]
    )


def _how(report: Report) -> str:
    """What it ran on, and how each product was set up."""
    server, on = report.server, report.machine
    lines = ["How it was measured", ""]
    for product, setup in report.setups.items():
        versions = ", ".join(
            f"{name} {version}" for name, version in report.versions.get(product, {}).items()
        )
        lines += _wrapped(f"- **{product}** ({versions}): {setup}.", indent=2)
    for product, why in report.left_out.items():
        lines += _wrapped(f"- **{product}** is left out: {why}", indent=2)
    settings = ", ".join(f"{name} {value}" for name, value in server.items() if name != "server_version")
    lines += _wrapped(
        f"- **The server**: PostgreSQL {server.get('server_version', 'unknown')} on the same machine, {settings}.",
        indent=2,
    )
    lines += _wrapped(
        f"- **The machine**: {on['processors']} processors, {on['system']}, Python {on['python']}; {on['at']}; load "
        f"{on.get('load_at_the_start', 0):.1f} at the start and {on['load_at_the_end']:.1f} at the end.",
        indent=2,
    )
    if report.scale != 1:
        lines += _wrapped(f"- {_SCALED.format(report.scale)}", indent=2)
    if loaded(report):
        lines += ["", *_wrapped(_LOADED)]
    return "\n".join(lines)


def _doubts(report: Report) -> str:
    """Why the figures are to be doubted, if they are."""
    doubts = [_SCALED.format(report.scale)] if report.scale != 1 else []
    return " ".join([*doubts, _LOADED] if loaded(report) else doubts)


def loaded(report: Report) -> bool:
    """Whether so much else ran on the machine that its figures are to be doubted."""
    processors = report.machine["processors"] or 1
    return bool(
        report.machine.get("load_at_the_start", 0) > processors / 2
        or report.machine["load_at_the_end"] > 2 * processors
    )


def number(value: float) -> str:
    """Three significant figures, or all before the decimal point: 12,345; 123; 12.3; 1.23; 0.0123."""
    size = abs(value)
    if size >= 99.95 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}" if size >= 0.995 else f"{value:#.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Set[int] = frozenset()) -> list[str]:
    """Lines of a markdown table whose columns are aligned in plain text too; `right` are the columns of numbers."""
    cells = [list(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width - 1) + ":" if column in right else "-" * width for column, width in enumerate(widths)
    ]
    return [line(cells[0]), f"| {' | '.join(rule)} |", *map(line, cells[1:])]


def _wrapped(text: str, *, indent: int = 0) -> list[str]:
    return textwrap.wrap(
        text, 118, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
