"""The rows of a run as the Markdown table of docs/performance.md, between two markers there."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import Watch
from benchmarks.ratios import Spread

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BEGIN = "<!-- begin: written by `python -m benchmarks table` -->"
END = "<!-- end: written by `python -m benchmarks table` -->"
HEADINGS = ("what", "measured", "beside", "ratio (quartiles)", "target", "processor time, µs")


class Row(NamedTuple):
    """A row of the table in docs/performance.md, as text; and its ratio, for the plots."""

    what: str
    figure: str
    beside: str  # the contestant that it is compared with
    ratio: str  # the median of the rounds' ratios, and the quartiles
    target: str
    cpu: str = ""  # microseconds of processor time: the client's + the server's
    spread: Spread | None = None
    part: str = ""  # the benchmark's name


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; the name of each part stands above its rows."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "| " + " | ".join(["---"] * len(HEADINGS)) + " |"]
    part = ""
    for row in rows:
        if row.part != part:
            part = row.part
            lines.append("| " + " | ".join([f"**{part}**", *[""] * (len(HEADINGS) - 1)]) + " |")
        cells = (row.what, row.figure, row.beside, row.ratio, row.target, row.cpu)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def verdict(watch: Watch) -> str:
    """Return a paragraph that says whether the machine was busy."""
    reasons = watch.reasons()
    if not reasons:
        return f"The machine was quiet: {watch.facts()}."
    return (
        f"**The machine was busy: {'; '.join(reasons)}.** Do not rely on these figures: on a busy "
        "machine ratios of 0.25 and of 0.79 were measured where 0.44 was right. In numbers: "
        f"{watch.facts()}."
    )


def facts(server: str, parts: Sequence[str], minutes: float) -> str:
    """Return a line about the ``server``, the packages and the machine."""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {server}, Django {version('Django')}, psycopg "
        f"{version('psycopg')}; {processor()}, {memory()}, {platform.system()} "
        f"{platform.release()}; {minutes:.0f} minutes for: {' '.join(parts)}."
    )


def rounds(most: int, seconds: float, scale: float, dropped: Mapping[str, tuple[int, int]]) -> str:
    """Return a line about the rounds; ``dropped`` has for each part how many, of how many."""
    lost, of = (sum(each[n] for each in dropped.values()) for n in (0, 1))
    parts = ", ".join(f"{each[0]} in {name}" for name, each in dropped.items() if each[0])
    return (
        f"Up to {most} rounds with windows of {seconds:g} s; {lost} of {of} rounds were dropped, "
        f"because their limit was slow{f': {parts}' if parts else ''}."
        f"{'' if scale == 1 else f' Logs and events: {scale:g} of what a full run has.'}"
    )


def processor(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return the model of the processors, and how many there are."""
    name = platform.machine()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} CPUs ({name})"


def memory() -> str:
    """Return the size of the machine's memory."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{size:.0f} GiB of memory"


def replaced(page: str, text: str) -> str:
    """Return a page with ``text`` between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page has no {BEGIN} and {END}: add both, in this order.")
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"


def write(text: str, path: Path = PAGE) -> None:
    """Put the text into the page, whole or not at all."""
    write_whole(path, replaced(path.read_text(encoding="utf-8"), text))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole, whenever this process is ended."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
