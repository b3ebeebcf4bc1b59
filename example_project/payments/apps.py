"""The app of payments."""

from __future__ import annotations

from django.apps import AppConfig


class PaymentsConfig(AppConfig):
    """Payments: a log for each."""

    name = "example_project.payments"
    label = "payments"
