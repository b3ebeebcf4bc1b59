"""JSON as HTML: equal to the JSON, escaped, isolated, and cut if it is too long."""

from __future__ import annotations

import html
import json
import re

import pytest

from eventlogs.admin.json_markup import DEEPEST, line_markup, markup, path_markup
from eventlogs.reductions.timeline import path_text

VALUES = [
    {},
    [],
    "",
    None,
    True,
    1.5,
    [1, [2, {"a": []}], {}],
    {"a": {"b": [1, "x", None]}, "": "", "<b>&": "\"'</script>"},
    {"שלום": ["مرحبا", 7], "x": "\u202e\u2028"},
]


def text_of(markup: object) -> str:
    return html.unescape(re.sub("</?bdi>", "", str(markup)))


@pytest.mark.parametrize("value", VALUES)
def test_markup_is_the_json_that_it_shows(value):
    assert text_of(markup(value).html) == json.dumps(value, indent=2, ensure_ascii=False)
    assert text_of(line_markup(value).html) == json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize("value", VALUES)
def test_each_text_is_isolated_and_nothing_else_is_an_element(value):
    tags = re.findall("<[^>]*>", str(markup(value)))

    assert set(tags) <= {"<bdi>", "</bdi>"}
    assert len(tags) == json.dumps(value).replace('\\"', "").count('"')


def test_json_that_is_too_long_is_cut_and_ends_with_an_ellipsis():
    value = ["a" * 50, "b" * 50]

    assert not markup(value).is_cut
    found = markup(value, longest=60)
    assert found.is_cut
    assert str(found).endswith("\n…")
    assert str(found).count("<bdi>") == str(found).count("</bdi>")
    assert len(text_of(found)) == 60 + len("\n…")


def test_deep_values_are_not_indented_out_of_the_window():
    value: object = 1
    for _ in range(60):
        value = [value]
    lines = str(markup(value)).splitlines()

    assert max(len(each) - len(each.lstrip()) for each in lines) == 2 * DEEPEST
    assert json.loads(str(markup(value))) == value


@pytest.mark.parametrize("path", [("a", 1, "b"), ("a", "x y", "שלום"), (0,), ("<b>", '"')])
def test_the_markup_of_a_path_has_the_text_of_the_path(path):
    assert text_of(path_markup(path)) == path_text(path)
