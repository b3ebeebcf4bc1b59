"""The app of payments."""

from __future__ import annotations

from django.apps import AppConfig


class PaymentsConfig(AppConfig):
    """Payments: each has a log."""

    name = "example_project.payments"
    label = "payments"
