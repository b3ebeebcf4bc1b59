"""Helpers for the tests of system checks."""

from __future__ import annotations


def found(*checks, **kwargs):
    """Return the ids of the messages of some checks."""
    return [message.id for check in checks for message in check(app_configs=None, **kwargs)]
