"""The app of road traffic fines."""

from __future__ import annotations

from importlib import import_module

from django.apps import AppConfig


class FinesConfig(AppConfig):
    """Fines: a log for each case."""

    name = "example_project.fines"
    label = "fines"

    def ready(self) -> None:
        """Register the events, also in processes that import nothing else of this app."""
        import_module("example_project.fines.events")
