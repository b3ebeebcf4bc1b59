"""
``manage.py`` for the processes that tests start: python -m tests.management.manage DATABASE …

It works on the test database of that name, and knows the domain of the tests. The JSON in the
variable EVENTLOGS_TEST_SETTINGS is added to the settings of that database.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

import django
from django.conf import settings
from django.core.management import execute_from_command_line


def main(then: Callable[[], None] = lambda: None) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    settings.DATABASES["default"]["NAME"] = sys.argv.pop(1)
    settings.DATABASES["default"].update(
        json.loads(os.environ.get("EVENTLOGS_TEST_SETTINGS", "{}"))
    )
    django.setup()
    import tests.accounts  # noqa: F401 (its events need Django)

    then()
    execute_from_command_line(["manage.py", *sys.argv[1:]])


if __name__ == "__main__":
    main()
