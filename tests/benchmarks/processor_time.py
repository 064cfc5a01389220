"""How much processor time a process and its children have used: what a noisy machine distorts least.

Read from /proc, so only on Linux; elsewhere it is None.
"""

import os
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def used_by(pid: int) -> float | None:
    """Seconds used so far by a process, by its children that live, and by those it has waited for."""
    if not Path("/proc/self/stat").exists():
        return None
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parent, times = int(fields[1]), [int(field) for field in fields[11:15]]
            if int(entry.name) == pid:
                total += sum(times)
            elif parent == pid:
                total += sum(times[:2])
    return total / _TICK
