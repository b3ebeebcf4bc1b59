"""
``manage.py`` for the processes that tests start: python -m tests.management.manage DATABASE …

It works on the test database of that name, and knows the domain of the tests.
"""

from __future__ import annotations

import os
import sys

import django
from django.conf import settings
from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    settings.DATABASES["default"]["NAME"] = sys.argv.pop(1)
    django.setup()
    import tests.accounts  # noqa: F401 (its events need Django)

    execute_from_command_line(["manage.py", *sys.argv[1:]])
