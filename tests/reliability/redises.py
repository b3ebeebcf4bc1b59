"""A Redis that is stopped, hung and started again while it is used, and the caches on it."""

from __future__ import annotations

import signal
from importlib import import_module
from typing import Any

from tests.servers import Redis

MORTAL = "mortal"  # its alias in CACHES


class MortalRedis(Redis):
    """A private Redis, without a disk: its data is gone when it starts again."""

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Stop it, with or without a clean shutdown."""
        self.process.send_signal(how)
        self.process.wait()

    def start(self) -> None:
        """Start it again, on the same socket."""
        self.socket.unlink(missing_ok=True)
        self._start()

    def prepare(self) -> None:
        if not (self.directory / "programs").exists():
            super().prepare()

    def hang(self) -> None:
        """Make it accept connections and answer nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def client(self) -> Any:
        # redis is installed only where these tests run.
        return import_module("redis").Redis.from_url(self.url)

    @property
    def caches(self) -> dict[str, Any]:
        """The value for CACHES: django-redis on this server."""
        return {
            "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
            MORTAL: {
                "BACKEND": "django_redis.cache.RedisCache",
                "LOCATION": self.url,
                "OPTIONS": {"SOCKET_TIMEOUT": 0.3, "SOCKET_CONNECT_TIMEOUT": 0.3},  # seconds
            },
        }
