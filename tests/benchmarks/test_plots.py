from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.plots import bars, labelled
from benchmarks.ratios import Spread
from benchmarks.tables import Row

SVG = "{http://www.w3.org/2000/svg}"


def row(what: str, ratio: float, beside: str = "pgbench") -> Row:
    found = Spread(ratio - 0.1, ratio, ratio + 0.1)
    return Row(what, "1", f"{beside}: 2", str(found), "", spread=found)


ROWS = [
    row("append", 0.5),
    row("… with <a> & b", 0.4),
    Row("a figure", "1", "", "", ""),
    row("read", 3.0, "ORM"),
]


def test_ratios_to_one_limit_are_shown_with_whole_labels():
    assert [label for label, _ in labelled(ROWS, "pgbench")] == ["append", "append with <a> & b"]
    assert [label for label, _ in labelled(ROWS, "ORM")] == ["read"]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [], [row("twice as fast", 2.0)]])
def test_a_plot_is_well_formed_and_within_its_frame(rows):
    root = ElementTree.fromstring(
        bars("A <title> & more", rows, beside="pgbench", limit="1 & only")
    )

    assert root.tag == f"{SVG}svg"
    assert root.get("aria-label") == "A <title> & more"
    _, _, width, height = map(float, root.get("viewBox").split())
    found = root.findall(f"{SVG}rect")
    assert len(found) == len(labelled(rows, "pgbench"))
    for each in found:
        assert float(each.get("x")) + float(each.get("width")) <= width
        assert float(each.get("y")) + float(each.get("height")) <= height


def test_a_plot_is_readable_on_light_and_dark_pages_and_loads_nothing():
    text = bars("Title", ROWS, beside="pgbench", limit="the limit")

    assert "prefers-color-scheme: dark" in text
    for foreign in ("<script", "href", "url(", "@import", "<image"):
        assert foreign not in text
