"""Modules that the forkserver imports once, so that processes of a race start in milliseconds."""

from __future__ import annotations

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()
