"""What came of it, as a table for people and as JSON."""

import bisect
import itertools
import re
from collections import Counter, defaultdict
from typing import Any

from tests.chaos.driver import Driver, Violations
from tests.chaos.faults import Window
from tests.chaos.gang import Gang
from tests.chaos.server import Server
from tests.chaos.verdict import Evidence, server_lines
from tests.support.proxy import Proxy


def figures(
    *,
    seed: int,
    began: float,
    ended: float,
    drained: float,
    windows: list[Window],
    evidence: Evidence,
    driver: Driver,
    gang: Gang,
    server: Server,
    proxies: dict[str, Proxy],
    violations: Violations,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """All figures of a run; times in seconds."""
    finished = evidence.finished
    recoveries = {kind: max(_recovery(w, finished) for w in of) for kind, of in _by_kind(windows).items()}
    gaps = [later - earlier for earlier, later in itertools.pairwise(finished)]
    longest = {name: max(times) for name, times in evidence.durations.items()}
    return {
        "seed": seed,
        "seconds": round(ended - began, 1),
        "seconds until the last execution had ended": round(drained - ended, 1),
        "executions": sum(evidence.statuses.values()),
        "executions by function": dict(evidence.kinds.most_common()),
        "executions by status": dict(evidence.statuses.most_common()),
        "executions per second": _rate(finished, [(began, ended)]),
        "executions per second without a fault": _rate(finished, _calm(windows, began, ended)),
        "steps recorded": evidence.steps,
        "executions lost": evidence.lost,
        "duplicate records": evidence.duplicate_records,
        "counter": {"found": evidence.counter[0], "expected": evidence.counter[1]},
        "effects": evidence.effects,
        "attempts that ran more than once": evidence.run_again,
        "effects of processes that the execution was taken from": evidence.zombie_effects,
        "takeovers": evidence.takeovers,
        "executions taken over": evidence.taken_over,
        "faults": len(windows),
        "faults by kind": {
            kind: {
                "times": len(of),
                "executions per second meanwhile": _rate(finished, [(w.began, w.ended) for w in of]),
                "longest recovery": round(recoveries[kind], 2),
            }
            for kind, of in sorted(_by_kind(windows).items())
        },
        "timeline": [
            {
                "fault": window.kind,
                "began": round(window.began - began, 1),
                "ended": round(window.ended - began, 1),
                "told": window.told,
                "recovery": round(_recovery(window, finished), 2),
            }
            for window in sorted(windows, key=lambda window: window.began)
        ],
        "executions that ended, by ten seconds": _by_ten_seconds(finished, began),
        "longest recovery": round(max(recoveries.values(), default=0), 2),
        "longest time without a completed execution": round(max(gaps, default=0), 2),
        "longest execution": {name: round(longest[name], 1) for name in sorted(longest)},
        "clients": dict(driver.counts)
        | {"answers and requests lost": {name: proxy.lost for name, proxy in proxies.items()}},
        "what callers were told who had to ask again": dict(driver.refusals.most_common(10)),
        "worker processes": len(gang.crew.workers),
        "ends of worker processes": dict(gang.exits.most_common()),
        "server starts": server.starts,
        "server log": _server_errors(server),
        "violations": [{"execution": id, "text": text} for text, id in violations.found],
    } | extra


def _by_kind(windows: list[Window]) -> dict[str, list[Window]]:
    by_kind: dict[str, list[Window]] = defaultdict(list)
    for window in windows:
        by_kind[window.kind].append(window)
    return by_kind


def _recovery(window: Window, finished: list[float]) -> float:
    """From a fault's end to the next execution that was completed."""
    after = bisect.bisect(finished, window.ended)
    return finished[after] - window.ended if after < len(finished) else 0.0


def _rate(finished: list[float], spans: list[tuple[float, float]]) -> float | None:
    seconds = sum(end - begin for begin, end in spans)
    if seconds < 0.5:
        return None
    count = sum(bisect.bisect(finished, end) - bisect.bisect(finished, begin) for begin, end in spans)
    return round(count / seconds, 1)


def _by_ten_seconds(finished: list[float], began: float) -> list[int]:
    counts = Counter(int((at - began) // 10) for at in finished)
    return [counts[number] for number in range(max(counts, default=-1) + 1)]


def _calm(windows: list[Window], began: float, ended: float) -> list[tuple[float, float]]:
    """The time in which nothing was wrong."""
    calm: list[tuple[float, float]] = []
    at = began
    for window in sorted(windows, key=lambda window: window.began):
        if window.began > at:
            calm.append((at, min(window.began, ended)))
        at = max(at, window.ended)
    if at < ended:
        calm.append((at, ended))
    return calm


def _server_errors(server: Server) -> dict[str, int]:
    """What the server complained about, by its kind."""
    kinds: Counter[str] = Counter()
    for line in server_lines(server):
        found = re.search(r"(WARNING|ERROR|FATAL|PANIC|LOG):  (.*)", line)
        if found and found[1] != "LOG":
            told = re.sub('[0-9]+|".*?"', "…", found[2])[:100]
            kinds[f"{found[1]}: {told}"] += 1
    return dict(kinds.most_common(20))


def table(figures: dict[str, Any]) -> str:
    """For people."""
    lines = [""]
    for name in (
        "seed", "seconds", "seconds until the last execution had ended", "executions", "executions per second",
        "executions per second without a fault", "steps recorded", "executions lost", "duplicate records",
        "effects", "attempts that ran more than once", "effects of processes that the execution was taken from",
        "takeovers", "executions taken over", "worker processes", "server starts", "faults", "longest recovery",
        "longest time without a completed execution",
    ):  # fmt: skip
        lines.append(f"{name:<58}{figures[name]!s:>12}")
    counter = figures["counter"]
    lines.append(f"{'sum of all transfers':<58}{counter['found']!s:>12} of {counter['expected']}")
    lines.append("")
    lines.append(f"{'fault':<28}{'times':>8}{'executions/s meanwhile':>26}{'longest recovery, s':>24}")
    for kind, told in figures["faults by kind"].items():
        rate = told["executions per second meanwhile"]
        lines.append(
            f"{kind:<28}{told['times']:>8}{'-' if rate is None else rate:>26}{told['longest recovery']:>24}"
        )
    lines.append("")
    lines.append(f"{'executions of':<28}{'times':>8}{'longest, s':>26}")
    for kind, times in figures["executions by function"].items():
        lines.append(f"{kind:<28}{times:>8}{figures['longest execution'].get(kind, '-'):>26}")
    lines.append("")
    lines.append(f"by status: {figures['executions by status']}")
    lines.append(f"clients: {figures['clients']}")
    lines.append(f"violations: {len(figures['violations'])}")
    return "\n".join(lines)
