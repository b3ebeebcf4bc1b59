"""
Gauges of a database: lag, parked events, findings. They are asked for when Prometheus scrapes.

``eventlogs_up`` is 0 if the database does not answer in time, and then all figures are absent: an
alert has to ask for both. A look costs some fifty short statements, at most once in 15 seconds in
each process that is scraped; see ``eventlogs.operations.recent_health``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from eventlogs.operations.recent_health import MAX_AGE, PATIENCE, RecentHealth

__all__ = ["HealthCollector"]

FIGURES: Final = {
    "newest_position": "Position of the newest event.",
    "settled_position": "Position up to which the feed can be read.",
    "holding_back": "Open transactions that have appended and hold the feed back.",
}
PROJECTIONS: Final = {
    "position": "Position of the checkpoint.",
    "events_behind": "Events that are committed and not applied; at least that many.",
    "lag_seconds": "Seconds since the oldest event that is not applied was recorded.",
    "parked": "Logs held by a parked event.",
    "waiting": "Logs held by an event that waits for a retry or a release.",
    "awaiting_release": "Logs held by an event that waits for a release.",
    "is_running": "Whether a worker runs it.",
    "is_rebuild_due": "Whether its rows are those of another version.",
}


class HealthCollector(Collector):
    """
    Collects the gauges of one database for a registry of ``prometheus_client``.

    ``using`` is the alias of a database, by default the one that logs are written to. An answer is
    kept for ``max_age`` seconds, and waited for ``patience`` seconds, which must be shorter than
    Prometheus' scrape timeout.
    """

    def __init__(
        self, *, using: str | None = None, max_age: float = MAX_AGE, patience: float = PATIENCE
    ) -> None:
        self._health = RecentHealth(using=using, max_age=max_age, patience=patience)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the gauges without values. Without this, registering would ask the database."""
        return _families().values()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges that are known now. Nothing is raised."""
        using, seen, gauges = self._health.using, self._health.get(), _families()
        gauges["up"].add_metric([using], float(seen is not None and seen.is_up))
        if seen is not None:
            found = seen.health
            gauges["healthy"].add_metric([using], float(found.is_healthy))
            gauges["looked_at_timestamp_seconds"].add_metric([using], found.looked_at.timestamp())
            gauges["look_seconds"].add_metric([using], seen.seconds)
            counts = Counter((each.code, each.level) for each in found.findings)
            for (code, level), count in counts.items():
                gauges["findings"].add_metric([using, code, level], count)
            for name in FIGURES.keys() & found.figures.keys():
                gauges[name].add_metric([using], found.figures[name])
            for projection, figures in found.projections.items():
                for name in PROJECTIONS.keys() & figures.keys():
                    gauges[f"projection_{name}"].add_metric([using, projection], figures[name])
        yield from (each for each in gauges.values() if each.samples)


def _families() -> dict[str, GaugeMetricFamily]:
    database, projection = ["database"], ["database", "projection"]
    labels_and_texts = {
        "up": (database, "Whether the database has answered in time."),
        "healthy": (database, "Whether nobody has to act."),
        "looked_at_timestamp_seconds": (database, "When the database was looked at."),
        "look_seconds": (database, "How long that took."),
        "findings": ([*database, "code", "level"], "Findings of `manage.py eventlogs health`."),
        **{name: (database, text) for name, text in FIGURES.items()},
        **{f"projection_{name}": (projection, text) for name, text in PROJECTIONS.items()},
    }
    return {
        name: GaugeMetricFamily(f"eventlogs_{name}", text, labels=labels)
        for name, (labels, text) in labels_and_texts.items()
    }
