"""Two releases of a project, side by side: two processes, and two versions of one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.db.models import F

from eventlogs.models import Checkpoint, ProjectionWorker
from eventlogs.projections import leases, releases
from eventlogs.projections.releases import Handles, preferred
from eventlogs.projections.starting import begin, lease_partition
from tests.processes import Processes, until
from tests.projections.readmodels import Balances
from tests.projections.release import Release

pytestmark = pytest.mark.django_db(transaction=True)

COMMON = '''
import os
from dataclasses import dataclass
from pathlib import Path
from django.db import connection, models, transaction
from eventlogs import *
from eventlogs.projections import releases
from eventlogs.projections.workers import Worker

class Seat(models.Model):
    log_id = LogIdField(primary_key=True)
    total = models.IntegerField(default=0)
    seen = models.IntegerField(default=0)
    class Meta:
        app_label = "bookings"

def make_table():
    with connection.schema_editor() as editor:
        editor.create_model(Seat)

def rows():
    return sorted(Seat.objects.values_list("total", "seen"))

DEEDS = Path(os.environ["DEEDS"])

def do(deed):
    with DEEDS.open("a") as file:
        file.write(deed + "\\n")

def held(projection):
    return [(each.type, each.attempts) for each in projection.waiting()]

def refused(call):
    """Try something inside of a transaction, and go on in it."""
    with transaction.atomic():
        try:
            call()
        except EventLogError as error:
            said = f"{type(error).__name__}: {error}"
        else:
            said = "done"
        Seat.objects.count()
    return said
'''

BOOKED = """
@event("booking.booked")
@dataclass(frozen=True)
class Booked:
    seats: int
"""

CHARGED = """
@event("booking.charged")
@dataclass(frozen=True)
class Charged:
    amount: int
"""

BILLED = """
@event("booking.billed", aliases=["booking.charged"])
@dataclass(frozen=True)
class Charged:
    amount: int
"""

CHARGED_2 = """
@event("booking.charged", version=2)
@dataclass(frozen=True)
class Charged:
    amount: int
    currency: str = "EUR"

@upcaster("booking.charged", from_version=1)
def add_currency(data):
    return {**data, "currency": "EUR"}
"""

REFUNDED = """
@event("booking.refunded")
@dataclass(frozen=True)
class Refunded:
    amount: int
"""


def domain(*events: str, names: str = "Booked, Charged") -> str:
    return (
        COMMON
        + "".join(events)
        + f"""
@dataclass
class Booking(Aggregate, log_type="booking", events=[{names}]):
    total: int = 0
    def apply(self, record):
        self.total += getattr(record.event, "amount", 0)
"""
    )


def reactor(**handlers: str) -> str:
    methods = "".join(
        f"    @handles({event})\n"
        f"    def on_{name}(self, record): do(f'{name} {{record.event.amount}}')\n"
        for name, event in handlers.items()
    )
    return f"""
@projection("letters")
class Letters(Reactor):
    log_types = ["booking"]
    backoff = 0.0
{methods}"""


def read_model(*, version: int = 1, mode: str = "ASYNC", factor: int = 1, more: str = "") -> str:
    return f"""
@projection("seats", version={version})
class Seats(Projection):
    log_types = ["booking"]
    model = Seat
    mode = Projection.{mode}
    backoff = 0.0
    @handles(Charged)
    def charged(self, row, record):
        row.total += {factor} * record.event.amount
        row.seen += 1
{more}"""


OLD_REACTOR = domain(BOOKED, CHARGED) + reactor(charge="Charged")


@pytest.fixture
def release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], Release]]:
    """A function that begins a release, by its name and the source of the project."""
    monkeypatch.setenv("DEEDS", str(tmp_path / "deeds"))
    with Processes() as processes:
        yield lambda name, source: Release(processes, tmp_path / name, source)


@pytest.fixture
def deeds(tmp_path: Path) -> Callable[[], list[str]]:
    """A function that returns the reactions, in order."""
    file = tmp_path / "deeds"
    return lambda: file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def seats(transactional_db: None) -> Iterator[None]:
    """Let the read model's table be dropped in the end."""
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS bookings_seat")


# Kinds of changes


def test_an_event_that_was_renamed_is_left_to_the_release_that_knows_the_new_name(release, deeds):
    old = release("old", OLD_REACTOR)
    new = release("new", domain(BOOKED, BILLED) + reactor(charge="Charged"))
    old.do("Booking.logs.create(Charged(1))")
    assert old.do("Letters.catch_up()") == 1

    new.do("Booking.logs.create(Charged(2), Charged(3))")
    old.do("Booking.logs.create(Charged(4))")
    assert old.do("Letters.catch_up()") == 1
    assert old.do("held(Letters)") == [["booking.billed", 0]]
    assert new.do("Letters.catch_up()") == 2

    assert deeds() == ["charge 1", "charge 4", "charge 2", "charge 3"]
    assert new.do("held(Letters)") == []


def test_an_event_that_is_new_is_left_to_the_release_that_knows_it(release, deeds):
    old = release("old", OLD_REACTOR)
    new = release(
        "new",
        domain(BOOKED, CHARGED, REFUNDED, names="Booked, Charged, Refunded")
        + reactor(charge="Charged", refund="Refunded"),
    )
    state = new.do("str(Booking.logs.create(Charged(1), Refunded(2), Charged(3)).log_id)")

    assert old.do("Letters.catch_up()") == 1
    old.do(f"Booking.logs.append({state!r}, Charged(4), expected_version=3)")
    assert old.do("Letters.catch_up()") == 0
    assert new.do("Letters.catch_up()") == 3

    assert deeds() == ["charge 1", "refund 2", "charge 3", "charge 4"]


def test_a_new_event_without_a_handler_is_passed_over_by_the_release_that_knows_it(release, deeds):
    old = release("old", OLD_REACTOR)
    new = release(
        "new",
        domain(BOOKED, CHARGED, REFUNDED, names="Booked, Charged, Refunded")
        + reactor(charge="Charged"),
    )
    new.do("Booking.logs.create(Refunded(2), Charged(3))")

    assert old.do("Letters.catch_up()") == 0
    new.do("Letters.catch_up()")

    assert deeds() == ["charge 3"]
    assert new.do("held(Letters)") == []


def test_a_new_handler_gets_the_events_that_an_old_worker_would_pass_over(release, deeds):
    events = (BOOKED, CHARGED, REFUNDED)
    names = "Booked, Charged, Refunded"
    old = release("old", domain(*events, names=names) + reactor(charge="Charged"))
    new = release(
        "new", domain(*events, names=names) + reactor(charge="Charged", refund="Refunded")
    )
    new.do("Letters.catch_up()")
    old.do("Booking.logs.create(Charged(1), Refunded(2), Charged(3))")

    assert old.do("Letters.catch_up()") == 1
    assert old.do("held(Letters)") == [["booking.refunded", 0]]
    assert "another release that runs" in old.do("Letters.waiting()[0].details")
    new.do("Letters.catch_up()")

    assert deeds() == ["charge 1", "refund 2", "charge 3"]


def test_a_broken_version_that_asks_no_other_release_skips_an_event(release, deeds):
    events = (BOOKED, CHARGED, REFUNDED)
    names = "Booked, Charged, Refunded"
    old = release("old", domain(*events, names=names) + reactor(charge="Charged"))
    new = release(
        "new", domain(*events, names=names) + reactor(charge="Charged", refund="Refunded")
    )
    old.do("exec('releases.others_of = lambda *_: []')")
    new.do("Letters.catch_up()")
    old.do("Booking.logs.create(Charged(1), Refunded(2), Charged(3))")

    old.do("Letters.catch_up()")
    new.do("Letters.catch_up()")

    assert deeds() == ["charge 1", "charge 3"]


def test_a_handler_that_was_removed_is_left_to_the_old_release_while_that_runs(release, deeds):
    events = (BOOKED, CHARGED, REFUNDED)
    names = "Booked, Charged, Refunded"
    old = release(
        "old", domain(*events, names=names) + reactor(charge="Charged", refund="Refunded")
    )
    new = release("new", domain(*events, names=names) + reactor(charge="Charged"))
    old.do("Letters.catch_up()")
    new.do("Booking.logs.create(Charged(1), Refunded(2), Charged(3))")

    assert new.do("Letters.catch_up()") == 1
    assert old.do("Letters.catch_up()") == 2
    new.do("Booking.logs.create(Refunded(4), Charged(5))")
    assert new.do("Letters.catch_up()") == 0
    # The old release is gone for longer than its declaration is kept.
    new.do("exec('releases.KEPT = 0.0')")
    assert new.do("Letters.catch_up()") == 1

    assert deeds() == ["charge 1", "refund 2", "charge 3", "charge 5"]
    assert new.do("held(Letters)") == []


def test_a_log_type_that_is_new_is_left_to_the_release_that_reads_it(release, deeds):
    trip = """
@event("trip.paid")
@dataclass(frozen=True)
class Paid:
    amount: int

@dataclass
class Trip(Aggregate, log_type="trip", events=[Paid]):
    def apply(self, record): pass
"""
    old = release("old", domain(BOOKED, CHARGED) + trip + reactor(charge="Charged"))
    new = release(
        "new",
        domain(BOOKED, CHARGED)
        + trip
        + reactor(charge="Charged", paid="Paid").replace('["booking"]', '["booking", "trip"]'),
    )
    new.do("Letters.catch_up()")
    old.do("Trip.logs.create(Paid(1))")
    old.do("Booking.logs.create(Charged(2))")

    assert old.do("Letters.catch_up()") == 1
    assert new.do("Letters.catch_up()") == 1

    assert deeds() == ["charge 2", "paid 1"]


def test_data_of_a_newer_version_counts_no_attempt_of_older_code(release, deeds):
    old = release("old", OLD_REACTOR)
    new = release("new", domain(BOOKED, CHARGED_2) + reactor(charge="Charged"))
    old.do("Booking.logs.create(Charged(1))")
    new.do("Booking.logs.create(Charged(2, 'USD'))")

    for _ in range(10):
        old.do("Letters.catch_up()")
    assert old.do("held(Letters)") == [["booking.charged", 0]]
    assert "written by newer code" in old.do("Letters.waiting()[0].details")
    new.do("Letters.catch_up()")

    assert deeds() == ["charge 1", "charge 2"]


@pytest.mark.parametrize("kind", ["Projection", "ReductionProjection"])
def test_rows_are_right_after_a_deployment_of_a_new_event_and_a_new_version(release, seats, kind):
    old_source, new_source = (
        domain(BOOKED, CHARGED),
        domain(BOOKED, CHARGED_2, REFUNDED, names="Booked, Charged, Refunded"),
    )
    if kind == "Projection":
        old_source += read_model()
        new_source += read_model(
            more="    @handles(Refunded)\n    def refunded(self, row, record):\n"
            "        row.total += record.event.amount\n        row.seen += 1\n"
        )
    else:
        both = """
@projection("seats")
class Seats(ReductionProjection):
    aggregate = Booking
    model = Seat
    def to_row(self, reduction):
        return {"total": reduction.aggregate.total, "seen": reduction.version}
"""
        old_source += both
        new_source += both
    old, new = release("old", old_source), release("new", new_source)
    old.do("make_table()")
    log = old.do("str(Booking.logs.create(Charged(1)).log_id)")
    new.do(f"Booking.logs.append({log!r}, Refunded(10), Charged(100, 'USD'), expected_version=1)")
    old.do(f"Booking.logs.append({log!r}, Charged(1000), expected_version=3)")

    for _ in range(7):
        old.do("Seats.catch_up()")
    assert old.do("rows()") == [[1, 1]]
    assert old.do("Seats.parked()") == []
    new.do("Seats.catch_up()")

    assert new.do("rows()") == [[1111, 4]]
    assert new.do("bool(Seats.verify(sample=None))") is True


def test_a_rollback_holds_events_of_newer_code_until_the_next_deployment(release, deeds):
    new_source = domain(BOOKED, CHARGED_2, REFUNDED, names="Booked, Charged, Refunded") + reactor(
        charge="Charged", refund="Refunded"
    )
    with release("new", new_source) as new:
        new.do("Booking.logs.create(Charged(1), Refunded(2))")
        new.do("Booking.logs.create(Charged(3))")
    old = release("old", OLD_REACTOR)
    old.do("Booking.logs.create(Charged(4))")
    old.do("Letters.catch_up()")
    old.do("Letters.catch_up()")
    assert deeds() == ["charge 4"]
    assert old.do("held(Letters)") == [["booking.charged", 0], ["booking.charged", 0]]

    again = release("again", new_source)
    again.do("Letters.catch_up()")

    assert sorted(deeds()) == ["charge 1", "charge 3", "charge 4", "refund 2"]


def test_a_retired_type_is_passed_over_also_if_it_was_held(release, deeds, seats):
    old = release(
        "old",
        domain(BOOKED, CHARGED, REFUNDED, names="Booked, Charged, Refunded")
        + reactor(refund="Refunded"),
    )
    log = old.do("str(Booking.logs.create(Charged(1), Refunded(2), Charged(3)).log_id)")
    without = release("without", domain(BOOKED, CHARGED) + reactor(charge="Charged"))
    assert without.do("Letters.catch_up()") == 1
    assert without.do("held(Letters)") == [["booking.refunded", 0]]
    assert without.do(f"Booking.logs.reduce({log!r})").startswith("UnknownEventType")

    retired = release(
        "retired",
        domain(BOOKED, CHARGED, 'retired_event("booking.refunded")\n') + reactor(charge="Charged"),
    )
    retired.do("Letters.catch_up()")

    assert deeds() == ["charge 1", "charge 3"]
    assert retired.do("held(Letters)") == []
    assert retired.do(f"Booking.logs.reduce({log!r}).aggregate.total") == 4
    assert retired.do(f"Booking.logs.reduce({log!r}).version") == 3


def test_a_type_that_is_retired_is_left_to_a_release_that_handles_it_while_that_runs(
    release, deeds
):
    old = release(
        "old",
        domain(BOOKED, CHARGED, REFUNDED, names="Booked, Charged, Refunded")
        + reactor(charge="Charged", refund="Refunded"),
    )
    retired = release(
        "retired",
        domain(BOOKED, CHARGED, 'retired_event("booking.refunded")\n') + reactor(charge="Charged"),
    )
    old.do("Letters.catch_up()")
    old.do("Booking.logs.create(Charged(1), Refunded(2))")

    assert retired.do("Letters.catch_up()") == 1
    old.do("Letters.catch_up()")

    assert deeds() == ["charge 1", "refund 2"]


def test_a_rebuild_ends_at_an_event_of_newer_code_and_the_old_rows_stay(release, seats):
    old = release("old", domain(BOOKED, CHARGED) + read_model())
    new = release("new", domain(BOOKED, CHARGED, REFUNDED, names="Booked, Charged, Refunded"))
    old.do("make_table()")
    old.do("Booking.logs.create(Charged(1))")
    old.do("Seats.catch_up()")
    new.do("Booking.logs.create(Charged(2), Refunded(3), Charged(4))")

    said = old.do("Seats.rebuild()")

    assert said.startswith("ProjectionFailed")
    assert "retired_event('booking.refunded')" in said
    assert "correct its handler" not in said
    assert old.do("rows()") == [[1, 1]]
    old.do("Seats.rebuild(park=True)")
    assert old.do("held(Seats)") == [["booking.refunded", 0]]
    assert old.do("rows()") == [[1, 1], [2, 1]]


def read_models(release):
    """Two releases of a read model that know the same events; the second has one more handler."""
    source = domain(BOOKED, CHARGED, REFUNDED, names="Booked, Charged, Refunded") + read_model()
    more = """    @handles(Refunded)
    def refunded(self, row, record):
        row.total -= record.event.amount
"""
    old, new = release("old", source), release("new", source + more)
    old.do("make_table()")
    return old, new


def test_a_rebuild_passes_over_no_event_that_a_release_beside_it_handles(release, seats):
    old, new = read_models(release)
    new.do("Seats.catch_up()")
    new.do("Booking.logs.create(Charged(10), Refunded(3))")
    new.do("Seats.catch_up()")

    assert old.do("Seats.rebuild()").startswith("ProjectionFailed")
    assert new.do("rows()") == [[7, 1]]
    old.do("Seats.rebuild(park=True)")
    assert old.do("held(Seats)") == [["booking.refunded", 0]]
    new.do("Seats.catch_up()")

    assert new.do("rows()") == [[7, 1]]
    assert new.do("bool(Seats.verify(sample=None))") is True


def test_a_running_rebuild_respects_the_handlers_of_a_release_that_begins(release, seats):
    old, new = read_models(release)
    old.do("Booking.logs.create(Charged(1))")
    old.do("exec('from eventlogs.projections import rebuild', globals())")
    old.do("exec('steps = rebuild.rebuild_steps(Seats, park=True); next(steps)', globals())")
    new.do("Booking.logs.create(Charged(10), Refunded(3))")
    new.do("Seats.catch_up()")

    old.do("[None for _ in steps]")
    assert old.do("held(Seats)") == [["booking.refunded", 0]]
    new.do("Seats.catch_up()")

    assert new.do("rows()") == [[1, 1], [7, 1]]


def test_a_repair_keeps_the_changes_of_a_release_beside_it(release, seats):
    old, new = read_models(release)
    new.do("Booking.logs.create(Charged(10), Refunded(3))")
    new.do("Seats.catch_up()")

    said = old.do("bool(Seats.verify(sample=None, repair=True))")

    assert "another release" in said
    assert new.do("rows()") == [[7, 1]]


# Rows that a newer release has made


def assert_says_deployment(said):
    assert said.startswith("ProjectionUnavailable")
    assert "deployment" in said


def test_old_workers_do_not_touch_rows_that_a_newer_version_has_rebuilt(release, seats):
    old = release("old", domain(BOOKED, CHARGED) + read_model())
    new = release("new", domain(BOOKED, CHARGED) + read_model(version=2, factor=10))
    old.do("make_table()")
    log = old.do("str(Booking.logs.create(Charged(1)).log_id)")
    old.do("Seats.catch_up()")
    new.do("Seats.rebuild()")
    old.do(f"Booking.logs.append({log!r}, Charged(2), expected_version=1)")

    said = old.do("Seats.catch_up()")
    assert_says_deployment(said)
    new.do("Seats.catch_up()")

    assert new.do("rows()") == [[30, 2]]


def inline_releases(release):
    old = release("old", domain(BOOKED, CHARGED) + read_model(mode="INLINE"))
    new = release("new", domain(BOOKED, CHARGED) + read_model(mode="INLINE", version=2, factor=10))
    old.do("make_table()")
    return old, new


def test_an_old_process_does_not_touch_inline_rows_that_a_newer_release_has_rebuilt(release, seats):
    old, new = inline_releases(release)
    log = old.do("str(Booking.logs.create(Charged(1)).log_id)")
    old.do(f"Booking.logs.append({log!r}, Charged(2), expected_version=1)")
    assert new.do("Seats.rebuild()") == 2

    said = old.do(f"refused(lambda: Booking.logs.append({log!r}, Charged(4), expected_version=2))")
    assert_says_deployment(said)
    assert "correct its handler" not in said
    assert old.do("refused(lambda: Booking.logs.create(Charged(5)))").startswith(
        "ProjectionUnavailable"
    )
    assert old.do(f"Booking.logs.version({log!r})") == 2
    new.do(f"Booking.logs.append({log!r}, Charged(4), expected_version=2)")

    assert new.do("rows()") == [[70, 3]]


def test_an_old_process_does_not_touch_a_row_that_a_running_rebuild_has_made(release, seats):
    old, new = inline_releases(release)
    logs = [old.do("str(Booking.logs.create(Charged(1)).log_id)") for _ in range(2)]
    new.do(f"Seats.rebuild({logs[0]!r})")

    said = old.do(
        f"refused(lambda: Booking.logs.append({logs[0]!r}, Charged(4), expected_version=1))"
    )
    assert_says_deployment(said)
    old.do(f"Booking.logs.append({logs[1]!r}, Charged(4), expected_version=1)")

    assert new.do("rows()") == [[5, 2], [10, 1]]
    new.do("Seats.rebuild()")
    assert new.do("rows()") == [[10, 1], [50, 2]]


def test_a_row_that_an_old_append_makes_while_a_rebuild_ends_is_rebuilt(release, seats):
    old, new = inline_releases(release)
    old.do("Booking.logs.create(Charged(1))")
    # The old process is in the middle of an append, whose log no rebuild can see.
    old.do("exec('block = transaction.atomic(); block.__enter__()', globals())")
    log = old.do("str(Booking.logs.create(Charged(2)).log_id)")
    if connection.vendor == "sqlite":  # which has one writer at a time
        old.do("block.__exit__(None, None, None)")
        new.do("Seats.rebuild()")
    else:
        new.do("Seats.rebuild()")
        old.do("block.__exit__(None, None, None)")

    new.do(f"Booking.logs.append({log!r}, Charged(3), expected_version=1)")

    assert new.do("rows()") == [[10, 1], [50, 2]]


def test_an_old_process_does_not_repair_or_rebuild_a_row_that_a_newer_release_has_made(
    release, seats
):
    old, new = inline_releases(release)
    log = old.do("str(Booking.logs.create(Charged(1)).log_id)")
    assert new.do(f"Seats.rebuild({log!r})") == 1  # as a rebuild that is under way does

    assert_says_deployment(old.do("bool(Seats.verify(sample=None, repair=True))"))
    assert_says_deployment(old.do(f"Seats.rebuild({log!r})"))
    assert_says_deployment(old.do("Seats.rebuild()"))

    assert new.do("rows()") == [[10, 1]]
    new.do(f"Booking.logs.append({log!r}, Charged(2), expected_version=1)")
    assert new.do("rows()") == [[30, 2]]


def test_an_old_process_does_not_touch_a_row_that_a_newer_release_has_repaired(release, seats):
    old, new = inline_releases(release)
    log = old.do("str(Booking.logs.create(Charged(1)).log_id)")
    assert new.do("bool(Seats.verify(sample=None, repair=True))") is True

    said = old.do(f"refused(lambda: Booking.logs.append({log!r}, Charged(4), expected_version=1))")

    assert_says_deployment(said)
    assert new.do("rows()") == [[10, 1]]


def test_rows_that_old_processes_make_during_a_rebuild_are_rebuilt_at_its_end(release, seats):
    old, new = inline_releases(release)
    early = old.do("str(Booking.logs.new_id())")
    old.do("Booking.logs.create(Charged(1))")
    new.do("exec('from eventlogs.projections import rebuild', globals())")
    new.do("exec('steps = rebuild.rebuild_steps(Seats); next(steps)', globals())")
    # Its id is below those that the rebuild has come to.
    old.do(f"Booking.logs.create(Charged(2), log_id={early!r})")
    new.do("Seats.catch_up()")

    new.do("list(steps)")

    assert new.do("rows()") == [[10, 1], [20, 1]]
    assert new.do("bool(Seats.verify(sample=None))") is True


def test_an_old_rebuild_does_not_end_behind_a_newer_one(release, seats):
    old, new = inline_releases(release)
    log = old.do("str(Booking.logs.create(Charged(1)).log_id)")
    old.do("exec('from eventlogs.projections import rebuild', globals())")
    old.do("exec('steps = rebuild.rebuild_steps(Seats); next(steps)', globals())")
    new.do("Seats.rebuild()")

    assert_says_deployment(old.do("list(steps)"))

    said = old.do(f"refused(lambda: Booking.logs.append({log!r}, Charged(4), expected_version=1))")
    assert_says_deployment(said)
    assert new.do("rows()") == [[10, 1]]


def test_an_old_worker_parks_nothing_of_a_row_that_a_newer_release_has_made(release, seats):
    old, new = inline_releases(release)
    web = release("web", domain(BOOKED, CHARGED))  # which knows no projection
    log = old.do("str(Booking.logs.create(Charged(1)).log_id)")
    new.do(f"Seats.rebuild({log!r})")  # as a rebuild that is under way does
    web.do(f"Booking.logs.append({log!r}, Charged(2), expected_version=1)")

    for _ in range(7):
        old.do("Seats.catch_up()")
    assert old.do("held(Seats)") == [["booking.charged", 0]]
    assert new.do("rows()") == [[10, 1]]
    new.do("Seats.catch_up()")

    assert new.do("rows()") == [[30, 2]]
    assert new.do("held(Seats)") == []


def test_an_inline_append_to_a_log_with_an_unknown_event_says_deployment(release, seats):
    old = release("old", domain(BOOKED, CHARGED) + read_model(mode="INLINE"))
    web = release("web", domain(BOOKED, CHARGED, REFUNDED, names="Booked, Charged, Refunded"))
    old.do("make_table()")
    log = old.do("str(Booking.logs.create(Charged(1)).log_id)")
    # A process of a newer release that has no inline projection yet.
    web.do(f"Booking.logs.append({log!r}, Refunded(2), expected_version=1)")

    said = old.do(f"refused(lambda: Booking.logs.append({log!r}, Charged(4), expected_version=2))")

    assert_says_deployment(said)
    old.do("Seats.catch_up()")
    assert old.do("held(Seats)") == [["booking.refunded", 0]]
    assert old.do("rows()") == [[1, 1]]


@pytest.mark.parametrize("mode", ["ASYNC", "INLINE"])
def test_after_a_rollback_old_code_rebuilds_the_rows_with_downgrade(release, seats, mode):
    old = release("old", domain(BOOKED, CHARGED) + read_model(mode=mode))
    old.do("make_table()")
    log = old.do("str(Booking.logs.create(Charged(1)).log_id)")
    old.do("Seats.catch_up()")
    new_source = domain(BOOKED, CHARGED) + read_model(mode=mode, version=2, factor=10)
    with release("new", new_source) as new:
        new.do("Seats.rebuild()")
    assert_says_deployment(old.do("Seats.rebuild()"))

    assert old.do("Seats.rebuild(downgrade=True)") == 1
    old.do(f"Booking.logs.append({log!r}, Charged(2), expected_version=1)")
    old.do("Seats.catch_up()")

    assert old.do("rows()") == [[3, 2]]
    assert old.do("bool(Seats.verify(sample=None))") is True


# Workers


def test_a_worker_in_the_middle_of_a_batch_passes_over_nothing_of_a_release_that_begins(
    release, deeds, tmp_path
):
    events = (BOOKED, CHARGED, REFUNDED)
    names = "Booked, Charged, Refunded"
    wait = """
from tests.processes import Processes, until
def do(deed, do=do):
    do(deed)
    until(Path(os.environ["DEEDS"] + ".go").exists)
"""
    old = release("old", domain(*events, names=names) + wait + reactor(charge="Charged"))
    new = release(
        "new", domain(*events, names=names) + reactor(charge="Charged", refund="Refunded")
    )
    new.do("Booking.logs.create(Charged(1), Refunded(2))")
    old.begin("Letters.catch_up()")
    until(lambda: deeds() == ["charge 1"], what="the old worker does not begin")

    # A new worker begins: it repeats the current event of the old one (at least once), and handles
    # the events that the old one would have passed over.
    new.do("Letters.catch_up()")
    (tmp_path / "deeds.go").touch()
    old.answer()
    new.do("Letters.catch_up()")

    assert deeds().count("refund 2") == 1


# Declarations of processes that are busy

# Declarations count for three seconds, and no event takes longer than half of that. A busy machine
# does not keep a process from work for so long.
SHORT = """
from eventlogs.projections import partitions
releases.KEPT = 3.0
releases.RENEWED = partitions.RENEWED = 0.5
Letters.timeout = 1.5
"""

SLEEPY = """
import time
def do(deed, do=do):
    time.sleep(0.3)
    do(deed)
"""


def narrow_and_wide(release, *, old="", new=""):
    """Two releases that know the same events; the second one has one more handler."""
    source = domain(BOOKED, CHARGED, REFUNDED, names="Booked, Charged, Refunded")
    return (
        release("old", source + old + reactor(charge="Charged")),
        release("new", source + new + reactor(charge="Charged", refund="Refunded")),
    )


def test_the_declaration_of_a_run_counts_during_the_run_and_afterwards(release, deeds):
    old, new = narrow_and_wide(release, new=SLEEPY)
    old.do(f"exec({SHORT!r}, globals())")
    new.do(f"exec({SHORT!r}, globals())")
    old.do("[Booking.logs.create(Charged(n)) for n in range(20)] and None")

    # It takes twice as long as declarations are kept.
    assert new.do("Letters.catch_up()") == 20
    old.do("Booking.logs.create(Refunded(7))")
    old.do("Letters.catch_up()")

    assert old.do("held(Letters)") == [["booking.refunded", 0]]


def test_the_declaration_of_a_worker_counts_during_a_long_round(release, deeds):
    old, new = narrow_and_wide(release, new=SLEEPY)
    old.do(f"exec({SHORT!r}, globals())")
    new.do(f"exec({SHORT!r}, globals())")
    new.do("exec('runner = Worker([\"letters\"]); runner.round()', globals())")
    old.do("[Booking.logs.create(Charged(n)) for n in range(20)] and None")
    ProjectionWorker.objects.update(seen_until=F("seen_until") - timedelta(seconds=10))

    assert new.do("runner.round()") is True

    assert len(deeds()) == 20
    assert old.do("len(releases.others_of(Letters, 'default'))") == 1


@pytest.mark.parametrize("is_pruned", [False, True])
def test_an_expired_declaration_that_is_renewed_revokes_leases_again(
    release, deeds, tmp_path, is_pruned
):
    wait = """
from tests.processes import Processes, until
def do(deed, do=do):
    do(deed)
    until(Path(os.environ["DEEDS"] + ".go").exists)
"""
    old, new = narrow_and_wide(release, old=wait)
    new.do(
        "exec('runner = Worker([\"letters\"]); runner.round(); runner._advancers.clear()', "
        "globals())"
    )
    old.do("Letters.catch_up()")  # its declaration removes the expired ones
    new.do("Booking.logs.create(Charged(1))")
    new.do("Booking.logs.create(Refunded(2))")
    paused = ProjectionWorker.objects.exclude(name__startswith="run:")
    paused.update(seen_until=F("seen_until") - timedelta(days=1))
    Checkpoint.objects.update(owner="", leased_until=None)
    old.begin("Letters.catch_up()")
    until(lambda: deeds() == ["charge 1"], what="the old release does not begin")
    if is_pruned:
        ProjectionWorker.objects.all().delete()

    new.do("exec('runner._next_beat = 0.0; runner.round()')")
    (tmp_path / "deeds.go").touch()
    old.answer()
    until(lambda: new.do("runner.round()") or "refund 2" in deeds(), what="a deed is missing")

    assert deeds().count("refund 2") == 1


def test_an_attempt_that_loses_its_lease_to_a_release_is_not_counted(release, deeds, tmp_path):
    wait = """
from tests.processes import Processes, until
def do(deed, do=do):
    do(deed)
    until(Path(os.environ["DEEDS"] + ".go").exists)
"""
    old, new = narrow_and_wide(release, old=wait)
    old.do("setattr(Letters, 'max_attempts', 1)")
    new.do("setattr(Letters, 'max_attempts', 1)")
    old.do("Letters.catch_up()")
    old.do("Booking.logs.create(Charged(1))")
    # A worker has died: the next worker counts each attempt.
    Checkpoint.objects.update(owner="another:1:worker", leased_until=None)
    old.begin("Letters.catch_up()")
    until(lambda: deeds() == ["charge 1"], what="the old release does not begin")

    new.do("Letters.catch_up()")
    (tmp_path / "deeds.go").touch()
    old.answer()
    until(lambda: new.do("Letters.catch_up()") == 1, what="the event is not tried again")

    assert deeds() == ["charge 1", "charge 1"]
    assert new.do("held(Letters)") == []


def test_workers_of_two_releases_run_side_by_side_and_nothing_is_lost(release, deeds):
    events = (BOOKED, CHARGED, REFUNDED)
    names = "Booked, Charged, Refunded"
    old = release("old", domain(*events, names=names) + reactor(charge="Charged"))
    new = release(
        "new",
        domain(BOOKED, BILLED, REFUNDED, names=names)
        + reactor(charge="Charged", refund="Refunded"),
    )
    old.do("background(Worker(['letters']).run)")
    old.do("Booking.logs.create(Charged(0))")
    until(lambda: deeds() == ["charge 0"], what="the old worker does nothing")
    new.do("background(Worker(['letters']).run)")
    until(lambda: ProjectionWorker.objects.count() == 2, what="the new worker does not begin")

    for number in range(1, 21):
        old.do(f"Booking.logs.create(Charged({number}), Refunded({number}))")
        new.do(f"Booking.logs.create(Charged({100 + number}), Refunded({100 + number}))")

    wanted = {
        f"{what} {n}" for what in ("charge", "refund") for n in (*range(1, 21), *range(101, 121))
    }
    until(lambda: wanted <= set(deeds()), what="deeds are missing")
    assert old.do("Letters.parked()") == []


def test_a_lease_of_a_worker_that_died_long_ago_is_known_as_abandoned(tables):
    """An event that kills its worker is counted, even if no worker ran for longer than KEPT."""
    begin(Balances, "default")
    dead = f"{leases.HOST}:{2**22 + 1}:dead"
    assert lease_partition(Balances, 0, using="default", owner=dead)

    releases.declare_run(Balances, "default")

    taken = lease_partition(Balances, 0, using="default", owner="next")
    assert taken is not None
    assert taken.was_abandoned


def test_the_release_that_can_apply_more_is_preferred_and_equal_ones_take_turns(monkeypatch):
    narrow = Handles(1, frozenset({"booking"}), {"booking.charged": 1}, False)
    wide = Handles(1, frozenset({"booking"}), {"booking.charged": 2, "booking.billed": 2}, False)
    other = Handles(1, frozenset({"booking"}), {"booking.refunded": 1}, False)

    def workers(**handles):
        return [
            ProjectionWorker(name=name, projections={"letters": each.as_json})
            for name, each in handles.items()
        ]

    assert preferred(workers(a=narrow, b=wide)) == {"b": {"letters"}}
    assert preferred(workers(a=narrow, b=narrow)) == {"a": {"letters"}, "b": {"letters"}}
    had = set()
    for slot in range(2):
        monkeypatch.setattr("eventlogs.projections.releases.time.time", lambda at=slot: at * 15.0)
        had |= set(preferred(workers(a=wide, b=other)))
    assert had == {"a", "b"}
