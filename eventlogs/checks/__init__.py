"""System checks, registered with Django when this package is imported."""

from __future__ import annotations

from eventlogs.checks import mysql, rules

__all__ = ["mysql", "rules"]
