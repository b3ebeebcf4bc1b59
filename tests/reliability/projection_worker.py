"""A worker that runs projections: python -m tests.reliability.projection_worker DATABASE NAME."""

from __future__ import annotations

import signal
import sys
import threading

import django
from django.conf import settings


def main(database: str, name: str) -> None:
    """Run until SIGTERM."""
    settings.DATABASES["default"]["NAME"] = database
    django.setup()
    from eventlogs.projections.base import projections
    from eventlogs.projections.workers import Worker
    from tests.projections import readmodels

    projections.update(readmodels.DECLARED)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Worker([name], stop=stop).run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
