"""
A small project whose table has a history of one of three packages: changes, then an adoption.

``python -m tests.operations.adoption.site PACKAGE DATABASE`` makes the tables in an empty database
(a file for SQLite, a name on the server of the tests otherwise), changes rows, adopts them and
prints what is in the logs, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import types
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import django
from django.apps import apps
from django.conf import settings

APPS = {
    "simple_history": ["simple_history"],
    "pghistory": ["pgtrigger", "pghistory"],
    "auditlog": ["auditlog"],
}


def configure(package: str, name: str) -> None:
    """Set Django up, with an app ``site_shop`` that consists of this module's models."""
    from tests import mariadb
    from tests.settings import database_from_url

    if os.environ.get("EVENTLOGS_TEST_DATABASE") == "mariadb":
        at_server = mariadb.settings_from_url(os.environ["MARIADB_URL"], test_name=name)
        database = {**at_server, "NAME": name}
    elif "DATABASE_URL" in os.environ:
        database = {**database_from_url(os.environ["DATABASE_URL"]), "NAME": name}
    else:
        database = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": name,
            "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        }
    sys.modules["site_shop"] = types.ModuleType("site_shop")
    sys.modules["site_shop"].__file__ = __file__
    sys.modules["site_shop"].__path__ = []
    settings.configure(
        DATABASES={"default": database},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        SECRET_KEY="only-for-the-tests",
        USE_TZ=True,
        INSTALLED_APPS=[
            "django.contrib.contenttypes",
            "django.contrib.auth",
            *APPS[package],
            "eventlogs",
            "site_shop",
        ],
    )
    django.setup()
    # migrate makes the tables of apps that have models, and looks for them in a module.
    apps.get_app_config("site_shop").models_module = sys.modules["site_shop"]
    sys.modules["site_shop.models"] = sys.modules["site_shop"]


def main(package: str, name: str) -> None:
    """Print what the logs have after an adoption."""
    configure(package, name)

    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connection, models

    from eventlogs import Aggregate, LogId, event
    from eventlogs.operations.adoption import Adoption, Change

    meta = type("Meta", (), {"app_label": "site_shop"})
    fields: dict[str, Any] = {
        "__module__": "site_shop",
        "Meta": meta,
        "customer": models.CharField(max_length=50),
        "total": models.IntegerField(),
        "created": models.DateTimeField(auto_now_add=True),
    }
    if package == "simple_history":
        from simple_history.models import HistoricalRecords  # type: ignore[import-untyped]

        fields["history"] = HistoricalRecords(app="site_shop")
    Order: Any = type("Order", (models.Model,), fields)
    if package == "pghistory":
        import pghistory

        Order = pghistory.track(
            pghistory.InsertEvent(), pghistory.UpdateEvent(), pghistory.DeleteEvent()
        )(Order)
    if package == "auditlog":
        from auditlog.registry import auditlog  # type: ignore[import-untyped]

        auditlog.register(Order)
    call_command("migrate", verbosity=0)
    call_command("migrate", run_syncdb=True, verbosity=0)
    if package == "pghistory":
        import pgtrigger

        pgtrigger.install()

    user = User.objects.create(username="grace")
    [first, second, third, fourth] = (
        Order.objects.create(customer=f"customer {number}", total=number) for number in range(4)
    )
    with changed_by(package, user):
        first.total = 10
        first.save()
    second.customer = "somebody else"
    second.save()
    Order.objects.filter(pk=second.pk).update(total=99)
    third.delete()
    forget_history(package, Order, fourth.pk)

    @event("site.told")
    @dataclass(frozen=True, slots=True)
    class Told:
        kind: str
        total: int
        changed: list[str]

    @dataclass
    class SiteOrder(Aggregate, log_type="site_order", events=[Told]):
        total: int = 0

        def apply(self, record: Any) -> None:
            self.total = record.event.total

    class Orders(Adoption):
        model = Order
        aggregate = SiteOrder
        history = package

        def event(self, row: Any) -> Told:
            return Told("genesis", row.total, [])

        def change(self, change: Change) -> Told:
            return Told(change.kind, int(change.values["total"]), sorted(change.changes))

    found = Orders.adopt(batch_size=2)
    again = Orders.adopt()
    logs = {}
    now = datetime.now(UTC)
    for number, order in enumerate((first, second, third, fourth)):
        records = list(SiteOrder.logs.load(LogId.from_key("site_order", number + 1)))
        times = [each.recorded_at for each in records]
        assert times == sorted(times)
        assert all((now - each).total_seconds() < 60 for each in times)
        logs[number] = [
            {
                "kind": each.event.kind,
                "total": each.event.total,
                "changed": each.event.changed,
                "user": each.metadata.get("user"),
                "mark": each.metadata["adopted_from"],
            }
            for each in records
        ]
        assert order is not None
    connection.close()
    print(  # noqa: T201
        json.dumps(
            {
                "user": user.pk,
                "logs": logs,
                "adopted": [found.logs, found.events, found.present],
                "again": [again.logs, again.events, again.present],
            }
        )
    )


def changed_by(package: str, user: Any) -> Any:
    """Return a context in which changes are those of a user."""
    from contextlib import contextmanager

    if package == "pghistory":
        import pghistory

        return pghistory.context(user=user.pk, url="/orders/1/")
    if package == "auditlog":
        from auditlog.context import set_actor  # type: ignore[import-untyped]

        return set_actor(user)

    @contextmanager
    def set_user() -> Any:
        from simple_history.models import HistoricalRecords

        HistoricalRecords.context.request = types.SimpleNamespace(user=user)
        try:
            yield
        finally:
            del HistoricalRecords.context.request

    return set_user()


def forget_history(package: str, Order: Any, pk: int) -> None:
    """Leave a row without history, as if it was older than that."""
    if package == "simple_history":
        Order.history.filter(id=pk).delete()
    elif package == "pghistory":
        Order.pgh_event_model.objects.filter(pgh_obj_id=pk).delete()
    else:
        from auditlog.models import LogEntry  # type: ignore[import-untyped]

        LogEntry.objects.filter(object_id=pk).delete()


if __name__ == "__main__":
    main(*sys.argv[1:])
