"""The Django app: the modules that it imports when Django starts."""

from __future__ import annotations

import os
from pathlib import Path

from tests.processes import ROOT, Program

START = """
import django
from django.conf import settings

settings.configure(
    SECRET_KEY="k",
    USE_TZ=True,
    INSTALLED_APPS=["first", "eventlogs", "second"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()

from eventlogs.aggregates import aggregates
from eventlogs.events.registry import registry

# eventlogs has a log of its own, for receipts.
own = "eventlogs"
print(
    sorted(each.name for each in registry if not each.name.startswith(own)),
    [each.__name__ for each in aggregates if not each.__module__.startswith(own)],
)
"""
SOLD = """
from dataclasses import dataclass
from eventlogs import event

@event("sale.sold")
@dataclass(frozen=True)
class Sold:
    amount: int

print("events of second")
"""
SALE = """
from eventlogs import Aggregate
from second.events import Sold

class Sale(Aggregate, log_type="sale", events=[Sold]):
    pass

print("aggregates of second")
"""
# The aggregate names an event of a later app in INSTALLED_APPS.
FIRST = """
from eventlogs.events.registry import registry

print("projections of first know", registry.by_name("sale.sold").cls.__name__)
"""


def started(folder: Path, modules: dict[str, str], *, code: int = 0) -> tuple[str, str]:
    """Return the output and the errors of a process with two apps that have these modules."""
    for name, source in {"first/__init__.py": "", "second/__init__.py": "", **modules}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    paths = os.pathsep.join([str(folder), str(ROOT)])
    environ = {"PYTHONPATH": paths, "DJANGO_SETTINGS_MODULE": None}
    with Program("-c", START, environ=environ) as program:
        return program.ended(code=code), program.error_text


def test_events_aggregates_and_projections_of_each_app_are_imported_in_this_order(tmp_path):
    out, _ = started(
        tmp_path,
        {
            "second/events.py": SOLD,
            "second/aggregates.py": SALE,
            "first/projections.py": FIRST,
        },
    )

    assert out.splitlines() == [
        "events of second",
        "aggregates of second",
        "projections of first know Sold",
        "['sale.sold'] ['Sale']",
    ]


def test_an_app_without_such_modules_is_no_error(tmp_path):
    out, _ = started(tmp_path, {})

    assert out.split() == ["[]", "[]"]


def test_an_error_in_such_a_module_is_raised(tmp_path):
    for module in ("events", "aggregates", "projections"):
        folder = tmp_path / module
        folder.mkdir()
        modules = {f"second/{module}.py": "import a_module_that_is_not_installed"}
        _, errors = started(folder, modules, code=1)

        assert "No module named 'a_module_that_is_not_installed'" in errors
