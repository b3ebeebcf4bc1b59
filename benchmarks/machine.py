"""
Other load of the machine: read from /proc, and reported in the table.

Figures of a busy machine flatter: pgbench suffers more from it than a Python client does. So what
others take of the processors is measured, before the first window and during each.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")  # a second
CPUS = os.cpu_count() or 1

BUSY_FOREIGN = 0.10  # of all processors, taken by processes that are not the benchmark's
BUSY_STEAL = 0.05  # of all processors, taken by other machines of the host
BUSY_RUNNABLE = 0.5  # processes that wait for a processor or have one, per processor, before


class Usage(NamedTuple):
    """The processor time used up to a moment, in seconds."""

    at: float
    busy: float  # of all processors, by processes
    steal: float
    of_each: dict[int, tuple[int, float]]  # pid: its parent, seconds

    def of_family(self, *roots: int) -> float:
        """Return the seconds of some processes and all of their descendants."""
        return sum(self.of_each[pid][1] for pid in self.family(*roots))

    def family(self, *roots: int) -> set[int]:
        """Return the pids of some processes and all of their descendants."""
        children: dict[int, list[int]] = {}
        for pid, (parent, _) in self.of_each.items():
            children.setdefault(parent, []).append(pid)
        found: set[int] = set()
        left = [pid for pid in roots if pid in self.of_each]
        while left:
            pid = left.pop()
            if pid not in found:
                found.add(pid)
                left += children.get(pid, [])
        return found


def usage(proc: Path = PROC) -> Usage:
    """Read /proc; without it, return an empty usage."""
    at = time.monotonic()
    try:
        [first, *_] = (proc / "stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return Usage(at, 0, 0, {})
    user, nice, system, _idle, _wait, _irq, _soft, steal, *_ = map(int, first.split()[1:])
    of_each = {}
    for entry in proc.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has ended
            continue
        fields = stat.rpartition(")")[2].split()  # a name may hold spaces and brackets
        # utime, stime, and those of children that have ended: what a family has used never falls.
        of_each[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:15])) / TICKS)
    return Usage(at, (user + nice + system) / TICKS, steal / TICKS, of_each)


def foreign_share(before: Usage, after: Usage, *roots: int) -> float:
    """Return the share of all processors that others than ``roots`` took in between."""
    wall = (after.at - before.at) * CPUS
    ours = after.of_family(*roots) - before.of_family(*roots)
    return max(0.0, (after.busy - before.busy - ours) / wall) if wall > 0 else 0.0


def steal_share(before: Usage, after: Usage) -> float:
    """Return the share of all processors that the host gave to other machines in between."""
    wall = (after.at - before.at) * CPUS
    return (after.steal - before.steal) / wall if wall > 0 else 0.0


def runnable(proc: Path = PROC) -> int:
    """Return how many processes have or want a processor now, this one left out."""
    try:
        lines = (proc / "stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    [line] = [line for line in lines if line.startswith("procs_running ")]
    return int(line.split()[1]) - 1


@dataclass
class Watch:
    """The load of other processes on the machine: before a run, and in each window of it."""

    load: float = 0.0
    runnable: float = 0.0
    before: float = 0.0  # the share of others before the run
    foreign: list[float] = field(default_factory=list)
    steal: list[float] = field(default_factory=list)

    def look_before(self, seconds: float = 2.0, samples: int = 20) -> None:
        """Look at a machine on which the benchmark does nothing yet."""
        self.load = os.getloadavg()[0]
        begin, counts = usage(), []
        for _ in range(samples):
            time.sleep(seconds / samples)
            counts.append(runnable())
        self.runnable = statistics.mean(counts)
        self.before = foreign_share(begin, usage(), os.getpid())

    def saw(self, before: Usage, after: Usage, *roots: int) -> None:
        """Keep the share of others in a window; ``roots`` are the benchmark and its servers."""
        self.foreign.append(foreign_share(before, after, *roots))
        self.steal.append(steal_share(before, after))

    def reasons(self) -> list[str]:
        """Return why the machine was busy; none if it was quiet."""
        found = []
        if self.before > BUSY_FOREIGN:
            found.append(f"others took {self.before:.0%} of the processors before it began")
        if self.runnable > BUSY_RUNNABLE * CPUS:
            found.append(f"{self.runnable:.1f} processes were runnable before it began")
        if self.foreign and (share := statistics.mean(self.foreign)) > BUSY_FOREIGN:
            found.append(f"others took {share:.0%} of the processors during the windows")
        if self.steal and (share := statistics.mean(self.steal)) > BUSY_STEAL:
            found.append(f"the host took {share:.0%} of the processors for other machines")
        return found

    def facts(self) -> str:
        """Return a line of figures about the machine's other work."""
        parts = [
            f"load {self.load:.1f} and {self.runnable:.1f} runnable processes before",
            f"load {os.getloadavg()[0]:.1f} at the end",
        ]
        if self.foreign:
            parts.append(f"others took {statistics.mean(self.foreign):.1%} of the processors")
            parts.append(f"the host {statistics.mean(self.steal):.1%}")
        return ", ".join(parts)


watch = Watch()  # of this run
