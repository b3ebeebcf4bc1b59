"""Each id of a system check belongs to one module, and is documented."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from django.core.checks import run_checks
from django.core.checks.registry import registry

from eventlogs import checks

ROOT = Path(__file__).parents[2]
ID = re.compile(r"\b[EW]0\d\d\b")

OWNERS = {
    "settings": {"E001", "W002", "E005"},
    "databases": {"E004", "E040", "E053"},
    "events": {"E006", "E007", "E048", "E050"},
    "postgresql": {"W008", "W011", "W012", "W013", "W014"},
    "reductions": {"E003", "E009", "W010", "W020", "W021", "W022", "W023", "E047"},
    "projections": {"W030", "E031", "E032", "E033", "W036", "E037", "E038", "E039", "E054"},
    "privacy": {"E051"},
    "archives": {"E052"},
    "mysql": {"E041", "E042", "E043", "E044", "W045", "W046"},
}


def source_of(name):
    return Path(import_module(f"eventlogs.checks.{name}").__file__).read_text()


def test_all_modules_of_checks_are_registered():
    modules = {path.stem for path in Path(checks.__file__).parent.glob("*.py")} - {"__init__"}
    registered = {check.__module__ for check in registry.get_checks(True)}

    assert set(checks.__all__) == modules == set(OWNERS)
    assert {f"eventlogs.checks.{each}" for each in modules} <= registered


def test_each_id_exists_once():
    ids = [each for owned in OWNERS.values() for each in owned]

    assert len(ids) == len(set(ids)) == len({each[1:] for each in ids})


@pytest.mark.parametrize("name", OWNERS)
def test_a_module_lists_the_ids_that_it_owns(name):
    used = set(re.findall(r'id="eventlogs\.([EW]\d+)"', source_of(name)))
    listed = ID.findall(import_module(f"eventlogs.checks.{name}").__doc__)

    assert used == OWNERS[name]
    assert sorted(listed) == sorted(OWNERS[name])


def test_the_documentation_has_all_ids_and_no_others():
    page = (ROOT / "docs" / "settings.md").read_text()
    documented = set(re.findall(r"^\| `eventlogs\.([EW]\d+)` \|", page, re.MULTILINE))

    assert documented == set().union(*OWNERS.values())


@pytest.mark.feed
@pytest.mark.django_db
def test_the_project_of_these_tests_has_no_findings():
    assert [each for each in run_checks() if each.id.startswith("eventlogs")] == []
