"""The app of road traffic fines."""

from __future__ import annotations

from django.apps import AppConfig


class FinesConfig(AppConfig):
    """Road traffic fines: each case has a log."""

    name = "example_project.fines"
    label = "fines"
