"""
Settings of a project in which an integration is installed, for processes that tests start.

EVENTLOGS_TEST_APPS has the further apps, with spaces between, and EVENTLOGS_TEST_PLACE the name of
the test's database.
"""

from __future__ import annotations

import os
from typing import Any

from django.db import connection

from tests import settings

globals().update({name: value for name, value in vars(settings).items() if name.isupper()})

INSTALLED_APPS = [*settings.INSTALLED_APPS, *os.environ.get("EVENTLOGS_TEST_APPS", "").split()]
DATABASES = {
    "default": {**settings.DATABASES["default"], "NAME": os.environ.get("EVENTLOGS_TEST_PLACE", "")}
}


def environ(*apps: str, **more: str | None) -> dict[str, str | None]:
    """Return the environment of a process with these apps, on the database of the test."""
    name: Any = connection.settings_dict["NAME"]
    return {
        "DJANGO_SETTINGS_MODULE": __name__,
        "EVENTLOGS_TEST_APPS": " ".join(apps),
        "EVENTLOGS_TEST_PLACE": str(name),
        **more,
    }
