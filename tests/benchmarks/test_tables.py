from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.machine import Watch
from benchmarks.tables import (
    BEGIN,
    END,
    HEADINGS,
    PAGE,
    Row,
    memory,
    processor,
    replaced,
    rounds,
    table,
    verdict,
    write,
)

ROWS = [
    Row("single", "900 appends/s", "pgbench: 2,000", "0.45 (0.40-0.50)", "at least 0.5, missed"),
    Row("a|b", "1", "", "", ""),
]


def test_a_table_has_a_cell_for_each_heading_in_each_line():
    rows = [row._replace(part="appends") for row in ROWS]

    lines = table([*rows, ROWS[0]._replace(part="feed")]).splitlines()

    assert lines[0] == "| " + " | ".join(HEADINGS) + " |"
    assert [line.replace("\\|", "").count("|") for line in lines] == [len(HEADINGS) + 1] * 7
    assert lines[2].startswith("| **appends** |")
    assert lines[3].startswith("| single | 900 appends/s | pgbench: 2,000 | 0.45 (0.40-0.50) |")
    assert lines[4].startswith("| a\\|b |")
    assert lines[5].startswith("| **feed** |")


def test_the_table_first_reports_a_busy_machine():
    quiet, busy = Watch(foreign=[0.01], steal=[0.0]), Watch(before=0.9, foreign=[0.5], steal=[0.0])

    assert verdict(quiet).startswith("The machine was quiet: ")
    assert verdict(busy).startswith("**The machine was busy: others took 90%")
    assert "Do not rely on these figures" in verdict(busy)


def test_dropped_rounds_are_counted():
    found = rounds(15, 1.0, 1.0, {"appends": (2, 15), "batches": (0, 15)})

    assert "2 of 30 rounds were dropped" in found
    assert found.endswith("slow: 2 in appends.")
    assert rounds(15, 1.0, 0.1, {}).endswith("Logs and events: 0.1 of what a full run has.")


def test_the_table_is_written_only_between_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{BEGIN}\n\nold\n\n{END}\n\nAfter.\n")

    write("new", page)
    write("newer", page)

    assert page.read_text() == f"# Before\n\n{BEGIN}\n\nnewer\n\n{END}\n\nAfter.\n"
    assert [each.name for each in tmp_path.iterdir()] == ["page.md"]


@pytest.mark.parametrize("page", ["", f"{BEGIN}", f"{END}\n{BEGIN}"])
def test_a_page_without_markers_is_an_error_and_unchanged(tmp_path, page):
    path = tmp_path / "page.md"
    path.write_text(page)

    with pytest.raises(ValueError, match="The page has no"):
        write("new", path)

    assert path.read_text() == page


def test_the_page_of_the_documentation_has_the_markers():
    replaced(PAGE.read_text(encoding="utf-8"), "new")


def test_the_machine_is_described(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: A Fine One\nprocessor : 1\nmodel name\t: Other\n")

    assert processor(info).endswith("CPUs (A Fine One)")
    assert "CPUs (" in processor(Path("missing"))
    assert memory().endswith("GiB of memory")
