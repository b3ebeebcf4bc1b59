"""What the forkserver imports once, so that the processes of a race start within milliseconds."""

from __future__ import annotations

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()
