"""Django's settings for the Celery workers of the campaigns, and for the processes that append."""

from __future__ import annotations

import os

from tests.settings import *  # noqa: F403
from tests.settings import CACHES, DATABASES, TEST_NAME

DATABASES["default"]["NAME"] = TEST_NAME  # pytest has made it

CACHES["mortal"] = {
    "BACKEND": "django_redis.cache.RedisCache",
    "LOCATION": os.environ["CAMPAIGN_REDIS_URL"],
    "OPTIONS": {"SOCKET_TIMEOUT": 0.3, "SOCKET_CONNECT_TIMEOUT": 0.3},  # seconds
}
EVENTLOGS = {
    "CACHE": "mortal",
    "REFRESHER": os.environ.get("CAMPAIGN_REFRESHER", "eventlogs.tasks.CeleryRefresher"),
    "REFRESH_ON_APPEND": True,
}

CELERY_BROKER_URL = os.environ["CAMPAIGN_BROKER_URL"]
CELERY_TASK_DEFAULT_QUEUE = os.environ["CAMPAIGN_QUEUE"]  # runs may share a broker
CELERY_IMPORTS = ["tests.reliability.ledgers", "tests.reliability.context_tasks"]
CELERY_WORKER_HIJACK_ROOT_LOGGER = True
