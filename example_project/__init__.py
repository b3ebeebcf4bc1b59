"""The example project: a payments API and an importer of road traffic fines."""

import os

if os.environ.get("EXAMPLE_REDIS_URL"):
    # Celery's manual asks for this import, so that tasks use this application:
    # https://docs.celeryq.dev/en/stable/django/first-steps-with-django.html
    from example_project.celery import app as celery_app

    __all__ = ["celery_app"]
