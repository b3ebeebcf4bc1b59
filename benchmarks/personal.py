"""
What one personal field costs an append, on the side of the client.

``python -m benchmarks.personal`` appends the same event with and without the annotation, in turns,
to the configured database (EVENTLOGS_TEST_DATABASE), and to a store that stores nothing: what is
left is the time of this process. Each figure is the median of the rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any, Final

import django
from django.conf import settings
from django.test.utils import get_runner, setup_test_environment

from eventlogs import Aggregate, Personal, event

CLOCK: Final = time.process_time
ROUNDS: Final = 15
CALLS: Final = 50  # of one round


@event("benchmark.plain")
@dataclass(frozen=True, slots=True)
class Plain:
    member: int
    name: str
    amount: int = 5


@event("benchmark.personal")
@dataclass(frozen=True, slots=True)
class Secret:
    member: int
    name: Annotated[str, Personal(subject="member", redacted="")]
    amount: int = 5


@dataclass
class Plains(Aggregate, log_type="benchmark_plain", events=[Plain]):
    def apply(self, record: Any) -> None: ...


@dataclass
class Secrets(Aggregate, log_type="benchmark_secret", events=[Secret]):
    def apply(self, record: Any) -> None: ...


def seconds(call: Callable[[], object], calls: int = CALLS) -> float:
    """Return the time of one call, of this process alone: other work on the machine is left out."""
    begin = CLOCK()
    for _ in range(calls):
        call()
    return (CLOCK() - begin) / calls


def compare(
    name: str, plain: Callable[[], object], personal: Callable[[], object], calls: int = CALLS
) -> None:
    """Print what the second call costs beside the first."""
    one, other = [], []
    for _ in range(ROUNDS):
        one.append(seconds(plain, calls))
        other.append(seconds(personal, calls))
    more = median(b - a for a, b in zip(one, other, strict=True))
    ratio = median(b / a for a, b in zip(one, other, strict=True))
    print(
        f"{name:32} {median(one) * 1e6:8.1f} µs {median(other) * 1e6:8.1f} µs "
        f"{more * 1e6:+8.1f} µs  x {ratio:.2f}"
    )


def main() -> None:
    """Measure in a database of its own, which is destroyed at the end."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    setup_test_environment()
    runner = get_runner(settings)(verbosity=0, interactive=False)
    databases = runner.setup_databases()
    try:
        measure()
    finally:
        runner.teardown_databases(databases)


def measure() -> None:
    """Measure appends and reads."""
    from eventlogs import ANY, LogManager, LogState
    from eventlogs.events.codec import EventReader
    from eventlogs.stores.base import AppendRequest, BaseStore

    class Nowhere(BaseStore):
        """A store that stores nothing."""

        using = "default"

        def append(self, request: AppendRequest) -> LogState:
            return LogState(request.log_id, 1, 1)

        def claim(self, log_type: str, idempotency_key: str) -> None:
            return None

        def version(self, log_id: Any) -> int:
            return 1

        def events(self, log_id: Any, **options: Any) -> list[Any]:
            return []

    for name, store in (("client alone", Nowhere()), ("whole append", None)):
        plains, secrets = LogManager(Plains, store=store), LogManager(Secrets, store=store)
        one, other = plains.create(Plain(7, "Ada")), secrets.create(Secret(7, "Ada"))
        states = [one, other]

        def append(at: int, manager: Any, made: Any, states: list[Any] = states) -> Any:
            def run() -> None:
                states[at] = manager.append(states[at], made)

            return run

        compare(name, append(0, plains, Plain(7, "Ada")), append(1, secrets, Secret(7, "Ada")))
    compare(
        "whole append, any version",
        lambda: plains.append(one.log_id, Plain(7, "Ada"), expected_version=ANY),
        lambda: secrets.append(other.log_id, Secret(7, "Ada"), expected_version=ANY),
    )
    found = []
    for manager, state in ((plains, one), (secrets, other)):
        stored = manager._writing_store().events(state.log_id, start=0, limit=1_000)
        found.append((EventReader(manager.aggregate.event_types), stored))
    (reader, rows), (secret_reader, secret_rows) = found
    compare(
        "decode 1,000 events",
        lambda: list(reader.records(rows)),
        lambda: list(secret_reader.records(secret_rows)),
        1,
    )


if __name__ == "__main__":
    main()
