"""
Django's settings for the example project.

Without any configuration it uses an SQLite file. These environment variables change that:

    DATABASE_URL            postgresql://user:password@host/name, or sqlite:///a/path
    EXAMPLE_REDIS_URL       redis://host:port/0: the cache of reductions, and Celery's broker
    CELERY_BROKER_URL       another broker for Celery
    DJANGO_SECRET_KEY       required if DJANGO_DEBUG is 0
    DJANGO_DEBUG            1 (the default) or 0
    DJANGO_ALLOWED_HOSTS    names of hosts, separated by commas
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
        # IMMEDIATE: a transaction takes the write lock when it begins, and waits for it. With
        # SQLite's default, concurrent appends fail with "database is locked" (see check E004).
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},  # seconds
    }


def database(url: str) -> dict[str, Any]:
    """
    Return the settings of the database that a URL names.

    The query becomes options of the driver, as in ``?sslmode=require``. If the driver is not
    installed, Django reports that when the database is first used.
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
        # For a server on a Unix socket, the query has its directory: ?host=/var/run/postgresql
        "HOST": options.pop("host", parts.hostname or ""),
        "PORT": options.pop("port", str(parts.port or "")),
        "OPTIONS": options,
    }


# `manage.py demo` creates its own database. It must work even if DATABASE_URL belongs to another
# project and its driver is not installed.
DATABASE_URL = "" if sys.argv[1:2] == ["demo"] else os.environ.get("DATABASE_URL", "")
DATABASES = {"default": database(DATABASE_URL) if DATABASE_URL else sqlite(BASE_DIR / "db.sqlite3")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# `manage.py eventlogs archive` moves closed payments to files in this directory.
EVENTLOGS: dict[str, Any] = {
    "ARCHIVE_STORAGE": "archives",
    "RETENTION": ["example_project.payments.retention.settled_payments"],
}
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    "archives": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": BASE_DIR / "archives"},
    },
}

# The variable is not called REDIS_URL, because that may belong to another project. Without Redis,
# each process caches reductions in its own memory, and a thread of it writes them.
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
    EVENTLOGS |= {"REFRESHER": "eventlogs.tasks.CeleryRefresher", "REFRESH_ON_APPEND": True}
    CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL", EXAMPLE_REDIS_URL)
    CELERY_BEAT_SCHEDULE = {
        # Messages expire if no worker takes them in time; otherwise they would accumulate.
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
    raise ImproperlyConfigured("DJANGO_SECRET_KEY is not set. It is required if DJANGO_DEBUG is 0.")
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
    "eventlogs.middleware.EventContextMiddleware",
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
