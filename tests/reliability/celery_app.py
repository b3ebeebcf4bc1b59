"""The Celery application of the campaigns."""

from __future__ import annotations

from celery import Celery

app = Celery("eventlogs_tests")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
