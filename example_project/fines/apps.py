"""The app of road traffic fines."""

from __future__ import annotations

from django.apps import AppConfig


class FinesConfig(AppConfig):
    """Fines: a log for each case."""

    name = "example_project.fines"
    label = "fines"
