"""Retention rules: what is refused when one is declared, or named."""

from __future__ import annotations

from datetime import timedelta

import pytest

from eventlogs import RegistrationError, Retention
from eventlogs.archives.rules import rule_from, rules

YEAR = timedelta(days=365)


def test_rules_are_given_themselves_or_by_their_paths(settings):
    rule = Retention("account", YEAR)
    path = "tests.operations.archiving.closed.closed_accounts"
    settings.EVENTLOGS = {"RETENTION": [rule, path]}

    assert [each.after for each in rules()] == [YEAR, timedelta(microseconds=1)]


@pytest.mark.parametrize("after", [timedelta(), -YEAR, 365])
def test_an_age_that_is_not_positive(after):
    with pytest.raises(ValueError, match="positive") as caught:
        Retention("account", after)
    assert str(caught.value) == (
        f"after is {after!r}. It must be a positive datetime.timedelta: how long a log has had no "
        f"event."
    )


def test_a_condition_that_cannot_be_called():
    with pytest.raises(TypeError) as caught:
        Retention("account", YEAR, when=True)  # type: ignore[arg-type]
    assert str(caught.value) == "when is True. It must be a function of the aggregate."


def test_logs_of_eventlogs_itself_stay():
    with pytest.raises(ValueError, match="of eventlogs itself") as caught:
        Retention("eventlogs_seal", YEAR)
    assert str(caught.value) == (
        "log_type is 'eventlogs_seal', a log type of eventlogs itself. Its logs are appended to "
        "for good: leave them in the tables."
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "no.such.rule",
            "EVENTLOGS['RETENTION'] names 'no.such.rule', which cannot be imported: No module "
            "named 'no'. Give the dotted path to a Retention.",
        ),
        (
            YEAR,
            "EVENTLOGS['RETENTION'] has datetime.timedelta(days=365), which is no Retention. Give "
            "a Retention, or the dotted path to one.",
        ),
    ],
)
def test_what_is_no_rule(given, message):
    with pytest.raises(RegistrationError) as caught:
        rule_from(given)
    assert str(caught.value) == message
