"""
Django's settings for the tests.

EVENTLOGS_TEST_DATABASE chooses the database: ``sqlite`` (the default), ``postgresql``, whose
server is the one DATABASE_URL names, or ``mariadb``, whose server MARIADB_URL names;
``tests.servers`` sees to it that there is one. With PostgreSQL there is also the Redis that
REDIS_URL names.

EVENTLOGS_TEST_LAYOUT chooses the layout of the tables, ``fence`` (the default) or ``buckets``.

EVENTLOGS_TEST_NAME, which pytest sets, is the test database's name: each run has its own, so that
runs may share a server, and the processes that tests start find it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from django.core.exceptions import ImproperlyConfigured

from eventlogs import conf
from tests import mariadb
from tests.scratch import scratch


def database_from_url(url: str) -> dict[str, Any]:
    """
    Return Django's settings for the server that a ``postgresql://`` URL names.

    libpq does the parsing, so that all of its forms work and a misspelled parameter is an error:
    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
    """
    # psycopg is installed only where the tests run on PostgreSQL.
    from psycopg.conninfo import conninfo_to_dict

    parameters = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parameters.pop("dbname", "postgres"),
        "USER": parameters.pop("user", ""),
        "PASSWORD": parameters.pop("password", ""),
        "HOST": parameters.pop("host", ""),
        "PORT": parameters.pop("port", ""),
        "OPTIONS": parameters,
    }


def own_redis(url: str) -> str:
    """
    Return the URL of a Redis with a database of its own for each process of pytest-xdist.

    Tests empty a cache, which empties the whole database, and look for a text in all of it. A
    server has 16 databases.
    """
    parts, process = urlsplit(url), os.environ.get("PYTEST_XDIST_WORKER", "")
    options = dict(parse_qsl(parts.query))
    path = parts.path.strip("/") if parts.scheme != "unix" else ""
    number = str((int(options.pop("db", path) or 0) + int(process.removeprefix("gw") or 0)) % 16)
    if parts.scheme == "unix":
        return f"unix://{parts.path}?{urlencode({**options, 'db': number})}"
    return parts._replace(path=f"/{number}", query=urlencode(options)).geturl()


TEST_NAME = os.environ.get("EVENTLOGS_TEST_NAME", "test_eventlogs")

database = os.environ.get("EVENTLOGS_TEST_DATABASE", "sqlite")
if database == "sqlite":
    # A file, not memory: tests use several threads and processes.
    default_database: dict[str, Any] = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(tempfile.gettempdir(), "eventlogs.sqlite3"),
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
        "TEST": {"NAME": Path(scratch(), f"{TEST_NAME}.sqlite3")},
    }
elif database == "postgresql":
    if "DATABASE_URL" not in os.environ:
        raise ImproperlyConfigured(
            "DATABASE_URL is not set: pytest sets it by itself, and for other commands "
            "`python -m tests.servers postgresql -- COMMAND` starts a server and sets it."
        )
    default_database = database_from_url(os.environ["DATABASE_URL"])
    default_database["TEST"] = {"NAME": TEST_NAME}
elif database == "mariadb":
    if "MARIADB_URL" not in os.environ:
        raise ImproperlyConfigured(
            "MARIADB_URL is not set: pytest sets it by itself, and for other commands "
            "`python -m tests.servers mariadb -- COMMAND` starts a server and sets it."
        )
    default_database = mariadb.settings_from_url(os.environ["MARIADB_URL"], test_name=TEST_NAME)
else:
    raise ImproperlyConfigured(
        f"EVENTLOGS_TEST_DATABASE is {database!r}: use sqlite, postgresql or mariadb."
    )

layout = os.environ.get("EVENTLOGS_TEST_LAYOUT", "fence")
conf.DEFAULTS["LAYOUT"] = layout  # the default: many tests set EVENTLOGS to what they need
if database == "mariadb" and layout == "fence":
    # The example's projections read the feed, which MariaDB has not.
    SILENCED_SYSTEM_CHECKS = ["eventlogs.E033"]

DATABASES = {"default": default_database}
CACHES: dict[str, dict[str, Any]] = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
}
if database == "postgresql" and "REDIS_URL" in os.environ:
    CACHES["redis"] = {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": own_redis(os.environ["REDIS_URL"]),
        "KEY_PREFIX": TEST_NAME,  # runs may share a server
        "OPTIONS": {"SOCKET_TIMEOUT": 2, "SOCKET_CONNECT_TIMEOUT": 2},  # seconds
    }
    CACHES["redis of Django"] = {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": own_redis(os.environ["REDIS_URL"]),
        "KEY_PREFIX": f"{TEST_NAME}-django",
        "OPTIONS": {"socket_timeout": 2, "socket_connect_timeout": 2},  # seconds
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Named, as Django 6.1 wants it.
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}

SECRET_KEY = "only-for-the-tests"
EVENTLOGS: dict[str, Any] = {
    "ENCRYPTION_KEYS": ["b25seS1mb3ItdGhlLXRlc3RzLCBvZiAzMiBieXRlcyE="],
}
# Not one that takes half a second for each user that a test makes.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
ALLOWED_HOSTS = ["testserver"]
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "static/"

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
ROOT_URLCONF = "example_project.urls"
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "eventlogs.middleware.EventContextMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
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
