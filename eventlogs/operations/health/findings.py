"""The result of a look: findings and figures, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

from eventlogs.utils.times import utc_text

ACT: Final = "act"
INFO: Final = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One fact that a person on call needs.

    ``code`` is stable, one of those in docs/health.md. ``level`` is "act" (somebody must act) or
    "info" (for information). ``subject`` is the name of a projection, a database or cache alias,
    an event type or a worker. ``message`` is one sentence, without payload data.
    ``since`` is when it began, None if that is not known. ``action`` names a role and what it must
    do; ``command`` is a command or SQL to paste, "" if there is none. ``figures`` are numbers by
    name; names that end in ``_seconds`` are durations.
    """

    code: str
    level: str
    subject: str
    message: str
    since: datetime | None = None
    action: str = ""
    command: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def must_act(self) -> bool:
        """Whether somebody must act."""
        return self.level == ACT

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            **asdict(self),
            "since": None if self.since is None else utc_text(self.since, timespec="seconds"),
        }


@dataclass(frozen=True, slots=True)
class Health:
    """
    The answer of ``health()``: one database, at one moment.

    Findings on which somebody must act come first. ``figures`` are numbers of the database,
    ``projections`` those of each projection by its name, also if nothing is wrong, for a graph.
    A figure that is not known is left out.
    """

    using: str
    looked_at: datetime
    findings: tuple[Finding, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    projections: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def is_healthy(self) -> bool:
        """Whether nobody has to act."""
        return not any(each.must_act for each in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values, e.g. for a JsonResponse."""
        return {
            "healthy": self.is_healthy,
            "database": self.using,
            "looked_at": utc_text(self.looked_at, timespec="seconds"),
            "findings": [each.as_json() for each in self.findings],
            "figures": dict(self.figures),
            "projections": {name: dict(each) for name, each in self.projections.items()},
        }
