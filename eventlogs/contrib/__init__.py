"""Integrations; ``celery`` is imported if Celery is installed, the others if they are used."""
