"""The template filters for times."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from django.template import Context, Template
from django.utils.timezone import override

MOMENT = datetime(2026, 11, 27, 6, 14, 30, 123_456, UTC)


def rendered(source: str, value: object) -> str:
    return Template("{% load eventlogs_times i18n %}" + source).render(Context({"at": value}))


def test_a_time_is_an_element_that_programs_read_too():
    with override(ZoneInfo("Europe/Berlin")):
        assert rendered("{{ at|moment }}", MOMENT) == (
            '<time datetime="2026-11-27T07:14:30.123456+01:00">2026-11-27 07:14:30 UTC+01:00</time>'
        )
        text = rendered('{{ at|moment:"microseconds" }}', MOMENT)
    assert ">2026-11-27 07:14:30.123456 UTC+01:00<" in text


def test_a_time_inside_of_a_translated_sentence_stays_an_element():
    source = "{% blocktranslate with at=at|moment %}Since {{ at }}.{% endblocktranslate %}"

    assert rendered(source, MOMENT).startswith('Since <time datetime="2026-11-27T06:14:30')


def test_a_time_is_text_in_an_attribute():
    assert rendered("{{ at|moment_text }}", MOMENT) == "2026-11-27 06:14:30 UTC"


@pytest.mark.parametrize("value", [None, "", "yesterday"])
def test_a_value_that_is_no_time_is_rendered_as_empty_text(value):
    assert rendered("{{ at|moment }}{{ at|moment_text }}", value) == ""
