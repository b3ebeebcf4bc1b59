"""The ASGI application of the site with streams; STREAMED_DATABASE is the name of its database."""

from __future__ import annotations

import os

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIHandler


def application() -> ASGIHandler:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    settings.DATABASES["default"]["NAME"] = os.environ["STREAMED_DATABASE"]
    settings.ROOT_URLCONF = "tests.contrib.http.streaming_site"
    settings.ALLOWED_HOSTS = ["127.0.0.1"]
    settings.MIDDLEWARE = []
    return get_asgi_application()
