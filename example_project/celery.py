"""
The Celery application of the example project. Its worker refreshes cached reductions.

    EXAMPLE_REDIS_URL=redis://127.0.0.1:6379/0 celery --app example_project worker --beat
"""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.settings")

app = Celery("example_project")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
