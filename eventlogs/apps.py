"""The Django app."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate
from django.utils.module_loading import autodiscover_modules

from eventlogs import conf

DISCOVERED = ("events", "aggregates", "projections")  # modules of each app, in this order


def keep_layout(using: str, **kwargs: Any) -> None:
    """Give a new database the layout of the settings, and add counters that ``flush`` removed."""
    import_module("eventlogs.stores.layouts").keep_layout(using)


class EventLogsConfig(AppConfig):
    """Event logs: ``INSTALLED_APPS = [..., "eventlogs"]``."""

    name = "eventlogs"
    label = "eventlogs"
    verbose_name = "Event logs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks, read the setting, and import what apps declare."""
        conf.prepare()
        post_migrate.connect(keep_layout, sender=self)
        import_module("eventlogs.checks")
        # Receipts are in the feed of every project that forgets people: each process decodes them.
        import_module("eventlogs.operations.receipts")
        # As the admin finds admin.py: each process has to know all events and aggregates, to
        # decode what it reads, and all projections: inline ones take part in every append.
        # One kind after the other: a projection may name an event of an app that is listed
        # later. An error in such a module, ImportError included, is raised.
        for name in DISCOVERED:
            autodiscover_modules(name)
        # The log of seals is read like any other, in each process.
        if conf.has_seal_keys():
            import_module("eventlogs.seals.appended")
        # Celery's signals have to be connected in processes that only send messages as well.
        celery = find_spec("celery")
        if celery is not None and celery.submodule_search_locations:  # not a module of the project
            import_module("eventlogs.contrib.celery")
