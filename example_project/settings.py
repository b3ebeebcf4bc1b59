"""
Django's settings for the example project.

It runs as it is, on an SQLite file. The environment has the last word:

    DATABASE_URL            postgresql://user:password@host/name, or sqlite:///a/path
    EXAMPLE_REDIS_URL       redis://host:port/0: reductions are cached there, and Celery's
                            messages go through it (or through CELERY_BROKER_URL)
    DJANGO_SECRET_KEY       required when DJANGO_DEBUG is 0
    DJANGO_DEBUG            1 (the default) or 0
    DJANGO_ALLOWED_HOSTS    with commas between them
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent


def sqlite(name: str | Path) -> dict[str, Any]:
    """Return the settings of an SQLite database."""
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": name,
        # IMMEDIATE: whoever will write waits for its turn when it begins. With SQLite's default,
        # racing appends fail with "database is locked" (eventlogs.E004 checks it).
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},  # seconds
    }


def database(url: str) -> dict[str, Any]:
    """
    Return the settings of the database that a URL names.

    What is in its query becomes an option of the driver, as in ``?sslmode=require``. A driver
    that is not there is Django's error, when the database is first used.
    """
    parts = urlsplit(url)
    name = unquote(parts.path.removeprefix("/"))
    if parts.scheme == "sqlite":
        return sqlite(name)
    options = dict(parse_qsl(parts.query))
    backend = "postgresql" if parts.scheme == "postgres" else parts.scheme
    return {
        "ENGINE": f"django.db.backends.{backend}",
        "NAME": name,
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        # A server on a socket has its directory in the query: ?host=/var/run/postgresql
        "HOST": options.pop("host", parts.hostname or ""),
        "PORT": options.pop("port", str(parts.port or "")),
        "OPTIONS": options,
    }


# `manage.py demo` brings a database of its own. It must also run where DATABASE_URL is another
# project's, and its driver not installed.
DATABASE_URL = "" if sys.argv[1:2] == ["demo"] else os.environ.get("DATABASE_URL", "")
DATABASES = {"default": database(DATABASE_URL) if DATABASE_URL else sqlite(BASE_DIR / "db.sqlite3")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# It has a name of its own because REDIS_URL may be another project's. Without Redis, reductions
# are cached in the memory of the process, by a thread of it.
EXAMPLE_REDIS_URL = "" if sys.argv[1:2] == ["demo"] else os.environ.get("EXAMPLE_REDIS_URL", "")
if EXAMPLE_REDIS_URL:
    CACHES = {
        "default": {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": EXAMPLE_REDIS_URL,
            "KEY_PREFIX": "eventlogs-example",
            "OPTIONS": {"SOCKET_TIMEOUT": 1, "SOCKET_CONNECT_TIMEOUT": 1},  # seconds
        }
    }
    EVENTLOGS = {"REFRESHER": "eventlogs.tasks.CeleryRefresher", "REFRESH_ON_APPEND": True}
    CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL", EXAMPLE_REDIS_URL)
    CELERY_BEAT_SCHEDULE = {
        # Messages that no worker takes in time expire: otherwise they pile up while none runs.
        "projections": {
            "task": "eventlogs.run_projections",
            "schedule": 1.0,  # seconds
            "options": {"expires": 10.0},
        },
        "sweep": {
            "task": "eventlogs.sweep_reductions",
            "schedule": 60.0,
            "options": {"expires": 60.0},
        },
        "sweep-all": {
            "task": "eventlogs.sweep_reductions",
            "schedule": 86_400.0,
            "kwargs": {"full": True},
            "options": {"expires": 3_600.0},
        },
    }
    CELERY_BEAT_SCHEDULE_FILENAME = str(BASE_DIR / "celerybeat-schedule.sqlite3")
    CELERY_TASK_IGNORE_RESULT = True
    CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True

DEBUG = os.environ.get("DJANGO_DEBUG", "1") == "1"
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "only-for-development" if DEBUG else "")
if not SECRET_KEY:
    raise ImproperlyConfigured("DJANGO_SECRET_KEY is not set: it has to be when DJANGO_DEBUG is 0.")
ALLOWED_HOSTS = [host for host in os.environ.get("DJANGO_ALLOWED_HOSTS", "").split(",") if host]

ROOT_URLCONF = "example_project.urls"
WSGI_APPLICATION = "example_project.wsgi.application"
ASGI_APPLICATION = "example_project.asgi.application"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "eventlogs",
    "example_project.payments",
    "example_project.fines",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

STATIC_URL = "static/"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
