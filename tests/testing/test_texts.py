"""Differences between lists of events, as failures show them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from eventlogs.testing.texts import difference, history_of, lines_of, one_line


@dataclass(frozen=True)
class Paid:
    amount: int
    by: str = "ada"


@dataclass(frozen=True, repr=False)
class Posted:
    items: dict[str, Any] = field(default_factory=dict)


def changes(expected: list[Any], came: list[Any]) -> str:
    text = difference(expected, came, lambda here, there: expected[here] == came[there])
    return "\n".join(line.removeprefix("  ") for line in text.splitlines())


def test_fields_that_are_equal_are_shown_once():
    assert (
        changes([Paid(1), Paid(2)], [Paid(1), Paid(3)])
        == """\
  Paid(amount=1, by='ada')
  Paid(
-     amount=2,
+     amount=3,
      by='ada',
  )"""
    )


def test_long_values_are_compared_line_by_line():
    lines = {f"line {number}": "x" * 20 for number in range(5)}

    assert (
        changes([Posted(lines)], [Posted(lines | {"line 3": "other"})])
        == f"""\
  Posted(
      items={{'line 0': '{"x" * 20}',
             'line 1': '{"x" * 20}',
             'line 2': '{"x" * 20}',
-            'line 3': '{"x" * 20}',
+            'line 3': 'other',
             'line 4': '{"x" * 20}'}},
  )"""
    )


@pytest.mark.parametrize(
    ("expected", "came", "shown"),
    [
        ([1, 2, 3], [1, 3], "  Paid(1)\n- Paid(2)\n  Paid(3)"),
        ([1, 3], [1, 2, 3], "  Paid(1)\n+ Paid(2)\n  Paid(3)"),
        ([1, 1], [1], "  Paid(1)\n- Paid(1)"),
        ([], [2, 2], "+ Paid(2)\n+ Paid(2)"),
    ],
)
def test_events_that_are_missing_or_too_many_are_marked(expected, came, shown):
    found = changes([Paid(each) for each in expected], [Paid(each) for each in came])

    assert found.replace("amount=", "").replace(", by='ada'", "") == shown


def test_events_of_other_classes_are_not_compared_field_by_field():
    assert changes([Paid(1)], [Posted()]) == "- Paid(amount=1, by='ada')\n+ Posted(items={})"


def test_an_event_has_the_name_of_its_class_and_its_fields_whatever_its_repr_is():
    assert one_line(Posted({"a": 1})) == "Posted(items={'a': 1})"
    assert lines_of(Paid(1, "x" * 100)) == ["Paid(", "    amount=1,", f"    by='{'x' * 100}',", ")"]
    assert one_line(7) == "7"


def test_of_a_long_history_the_last_events_are_shown():
    shown = list(history_of([Paid(number) for number in range(30)]))

    assert shown[0] == "… 20 more"
    assert shown[-1] == "Paid(amount=29, by='ada')"
    assert len(shown) == 11
