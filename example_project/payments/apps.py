"""The app of payments."""

from __future__ import annotations

from importlib import import_module

from django.apps import AppConfig


class PaymentsConfig(AppConfig):
    """Payments: a log for each."""

    name = "example_project.payments"
    label = "payments"

    def ready(self) -> None:
        """Register the events, also in processes that import nothing else of this app."""
        import_module("example_project.payments.events")
