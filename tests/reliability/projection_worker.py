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
    from eventlogs.projections import declarations
    from eventlogs.projections.workers import Runner
    from tests.projections import readmodels

    declarations.projections.update(readmodels.DECLARED)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Runner([name], stop=stop).run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
