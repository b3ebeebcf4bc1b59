"""The import of road traffic fines."""

from __future__ import annotations

import csv
import io
import os
import signal
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from eventlogs import ANY, LogId
from eventlogs.models import Event, EventLog
from example_project.fines import events
from example_project.fines.events import Fine
from example_project.fines.rows import ACTIVITIES
from tests.example.conftest import database_url, manage
from tests.processes import until

pytestmark = pytest.mark.django_db

HEADER = [
    "amount",
    "article",
    "case:concept:name",
    "concept:name",
    "dismissal",
    "expense",
    "lastSent",
    "lifecycle:transition",
    "notificationType",
    "org:resource",
    "paymentAmount",
    "points",
    "time:timestamp",
    "totalPaymentAmount",
    "vehicleClass",
]
NAMES = {"case": "case:concept:name", "activity": "concept:name", "time": "time:timestamp"}


def row(case: str, activity: str, **values: str) -> dict[str, str]:
    filled = dict.fromkeys(HEADER, "")
    filled |= {"lifecycle:transition": "complete", "time:timestamp": "2001-02-03 00:00:00+01:00"}
    filled |= {"case:concept:name": case, "concept:name": activity}
    return filled | {NAMES.get(name, name): value for name, value in values.items()}


def fine(case: str, amount: str = "30.0", **values: str) -> dict[str, str]:
    values = {
        "article": "7.0",
        "dismissal": "NIL",
        "org:resource": "900",
        "points": "0.0",
        "totalPaymentAmount": "0.0",
        "vehicleClass": "A",
    } | values
    return row(case, "Create Fine", amount=amount, **values)


def paid(case: str, amount: str, total: str) -> dict[str, str]:
    return row(case, "Payment", paymentAmount=amount, totalPaymentAmount=total)


ROWS = [
    fine("X1", "30.1"),
    fine("X2", "40.0", article="142.0", points="2.0", dismissal="A", vehicleClass="M"),
    row("X1", "Send Fine", expense="10.2", time="2001-07-03 00:00:00+02:00"),
    paid("X2", "40.0", "40.0"),
    row("X1", "Insert Fine Notification", notificationType="P", lastSent="N"),
    row("X1", "Add penalty", amount="60.2"),
    fine("X3"),
    paid("X1", "0.1", "0.1"),
    paid("X1", "0.2", "0.3"),
    row("X1", "Send for Credit Collection"),
    row("X3", "Insert Date Appeal to Prefecture"),
    row("X3", "Send Appeal to Prefecture", dismissal="#"),
    row("X3", "Receive Result Appeal from Prefecture"),
    row("X3", "Notify Result Appeal to Offender"),
    row("X3", "Appeal to Judge", dismissal="G"),
]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes rows to a file, always the same one."""

    def write(rows, header=HEADER) -> Path:
        path: Path = tmp_path / "fines.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, header, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


def import_fines(path: Path, **options) -> dict[str, str]:
    out = io.StringIO()
    call_command("import_fines", path, stdout=out, no_color=True, **options)
    report = {}
    about_logs, _, _ = out.getvalue().partition("\n\n")  # then the read model reports
    for line in about_logs.splitlines():
        label, _, figure = line.rpartition("  ")
        report[label.strip() or "done"] = figure.strip()
    return report


def log_of(case: str) -> LogId:
    return Event.objects.get(idempotency_key=f"{case}:1").log.log_id


def test_each_case_becomes_a_log_and_each_row_an_event(write):
    report = import_fines(write(ROWS))

    assert report == {
        "cases": "3",
        "events appended": "15",
        "already there": "0",
        "paid in total": "40.3",
        "done": "Imported. The payments of each log add up to the total in the file.",
    }
    assert EventLog.objects.of_type("fine").count() == 3
    assert [record.index for record in Fine.logs.load(log_of("X1"))] == list(range(7))


def test_all_values_of_a_row_are_stored(write):
    import_fines(write(ROWS))

    winter = timezone(timedelta(hours=1))
    at = datetime(2001, 2, 3, tzinfo=winter)
    assert [record.event for record in Fine.logs.load(log_of("X1"))] == [
        events.Created(
            at=at,
            case="X1",
            amount=Decimal("30.1"),
            article=7,
            dismissal="NIL",
            officer="900",
            points=0,
            vehicle_class="A",
            total_paid=Decimal("0.0"),
        ),
        events.Sent(datetime(2001, 7, 3, tzinfo=timezone(timedelta(hours=2))), Decimal("10.2")),
        events.Notified(at, notification_type="P", last_sent="N"),
        events.PenaltyAdded(at, Decimal("60.2")),
        events.Paid(at, Decimal("0.1"), Decimal("0.1")),
        events.Paid(at, Decimal("0.2"), Decimal("0.3")),
        events.SentForCreditCollection(at),
    ]
    assert [record.event for record in Fine.logs.load(log_of("X3"), start=1)] == [
        events.AppealToPrefectureDated(at),
        events.AppealToPrefectureSent(at, dismissal="#"),
        events.AppealResultReceived(at, last_sent=None),
        events.AppealResultNotified(at, notification_type=None, last_sent=None),
        events.AppealedToJudge(at, dismissal="G"),
    ]


def test_amounts_are_stored_as_they_are_written(write):
    import_fines(write([fine("X1", "0.1"), paid("X1", "0.30", "0.30")]))

    stored = [each.data["amount"] for each in Event.objects.order_by("position")]
    assert stored == ["0.1", "0.30"]


def test_the_totals_of_a_fine_are_right(write):
    import_fines(write(ROWS))

    state = Fine.logs.reduce(log_of("X1")).aggregate
    assert (state.amount, state.penalty, state.expenses, state.total) == (
        Decimal("30.1"),
        Decimal("30.1"),
        Decimal("10.2"),
        Decimal("70.4"),
    )
    assert (state.paid, state.outstanding, state.status) == (
        Decimal("0.3"),
        Decimal("70.1"),
        "in collection",
    )
    assert Fine.logs.reduce(log_of("X2")).aggregate.status == "paid"
    assert Fine.logs.reduce(log_of("X3")).aggregate.status == "appealed"
    assert Fine.logs.reduce(log_of("X3")).aggregate.dismissal == "G"


def test_importing_again_appends_nothing_and_says_so(write):
    path = write(ROWS)
    import_fines(path)
    before = list(Event.objects.order_by("position").values())
    report = import_fines(path)

    assert (report["events appended"], report["already there"]) == ("0", "15")
    assert report["paid in total"] == "40.3"
    assert report["done"].startswith("Nothing to import.")
    assert list(Event.objects.order_by("position").values()) == before


def test_a_file_that_has_grown_appends_the_new_rows(write):
    import_fines(write(ROWS))
    report = import_fines(write([*ROWS, paid("X1", "70.1", "70.4"), fine("X4")]))

    assert (report["events appended"], report["already there"]) == ("2", "15")
    assert Fine.logs.reduce(log_of("X1")).aggregate.status == "paid"


def test_cases_may_come_in_another_order(write):
    import_fines(write(ROWS))
    report = import_fines(write(sorted(ROWS, key=lambda each: each["case:concept:name"])))

    assert report["events appended"] == "0"


@pytest.mark.parametrize(("changed", "column"), [(0, "amount"), (5, "amount"), (9, "time")])
def test_a_row_that_was_changed_is_an_error(write, changed, column):
    import_fines(write(ROWS))
    rows = [dict(each) for each in ROWS]
    rows[changed][NAMES.get(column, column)] = (
        "99.0" if column == "amount" else "2002-02-03 00:00:00+01:00"
    )

    with pytest.raises(CommandError, match=rf"line {changed + 2}: row \d of case X1 was imported"):
        import_fines(write(rows))
    assert Event.objects.count() == len(ROWS)


def test_a_row_that_was_taken_out_is_an_error(write):
    import_fines(write(ROWS))

    with pytest.raises(CommandError, match=r"case X1: its log has 7 events.* 6 rows"):
        import_fines(write(ROWS[:9] + ROWS[10:]))


@pytest.mark.parametrize("total", ["0.4", "0.2", "0.29"])
def test_payments_that_do_not_add_up_are_an_error(write, total):
    rows = [fine("X1"), paid("X1", "0.1", "0.1"), paid("X1", "0.2", total)]

    with pytest.raises(CommandError, match=r"case X1: its payments do not add up.* line 4"):
        import_fines(write(rows))


def test_a_log_with_events_of_another_writer_is_an_error(write):
    path = write(ROWS[:1])
    import_fines(path)
    at = datetime(2001, 2, 3, tzinfo=timezone.utc)  # noqa: UP017
    Fine.logs.append(log_of("X1"), events.Sent(at, Decimal(1)), expected_version=ANY)

    with pytest.raises(CommandError, match="case X1: its log has 2 events"):
        import_fines(path)
    with pytest.raises(CommandError, match=r"line 3: case X1: .* is at version 2"):
        import_fines(write([ROWS[0], ROWS[2]]))


# Bad files


def changed(**values: str) -> list[dict[str, str]]:
    return [fine("X1"), fine("X2") | {NAMES.get(name, name): v for name, v in values.items()}]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (changed(amount=""), "line 3, column amount"),
        (changed(amount="x"), "line 3, column amount"),
        (changed(amount="-1.0"), "line 3, column amount"),
        (changed(amount="1e5"), "line 3, column amount"),
        (changed(amount="NaN"), "line 3, column amount"),
        (changed(amount="1,5"), "line 3, column amount"),
        (changed(amount="\u0661"), "line 3, column amount"),
        (changed(amount="1" * 5000), "line 3, column amount"),
        (changed(article="1.5"), "line 3, column article"),
        (changed(points=""), "line 3, column points"),
        (changed(time=""), "line 3, column time:timestamp"),
        (changed(time="yesterday"), "line 3, column time:timestamp"),
        (changed(time="2001-02-30 00:00:00+01:00"), "line 3, column time:timestamp"),
        (changed(time="2001-02-03 00:00:00"), "line 3, column time:timestamp"),
        (changed(case=""), "line 3, column case:concept:name"),
        (changed(case="x" * 101), "line 3, column case:concept:name"),
        (changed(case="a\tb"), "line 3, column case:concept:name"),
        (changed(activity="Tow Away"), "line 3, column concept:name"),
        (changed(activity=""), "line 3, column concept:name"),
        (changed(**{"lifecycle:transition": "start"}), "line 3, column lifecycle:transition"),
        (changed(expense="1.0"), "line 3, column expense: must be empty for Create Fine"),
        ([fine("X1"), fine("X1")], "line 3, column concept:name: case X1 was created"),
        ([paid("X1", "1.0", "1.0")], "line 2, column concept:name: case X1 must start"),
        ([fine("X1"), paid("X1", "", "1.0")], "line 3, column paymentAmount"),
        ([fine("X1"), paid("X1", "1.0", "")], "line 3, column totalPaymentAmount"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_imported(write, rows, complaint):
    with pytest.raises(CommandError) as caught:
        import_fines(write(rows))

    assert complaint in str(caught.value)
    assert not Event.objects.exists()


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (HEADER[1:], "line 1, column amount: is missing"),
        ([*HEADER, "colour"], "line 1, column number 16: has an unknown name"),
        ([*HEADER, "amount"], "line 1, column amount: is twice"),
    ],
)
def test_a_bad_header_is_named(tmp_path, header, complaint):
    path = tmp_path / "fines.csv"
    path.write_text(",".join(header) + "\n")

    with pytest.raises(CommandError, match=complaint):
        import_fines(path)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "line 1: the file is empty"),
        (b"{header}\na,b\n", "line 2: there are 2 columns, and 15"),
        (b"{header}\n\xff\n", r"line \d: the text from here on is not UTF-8"),
        (b'{header}\n"a"b,\n', "line 2: this is not CSV"),
        (b'{header}\n"a', r"line \d: this is not CSV"),
        (b"{header}\n\x00\n", "line 2"),
        (b"PK\x03\x04\x14\x00\x00\x00", "line 1"),
    ],
)
def test_a_file_that_is_no_table_is_an_error(tmp_path, data, complaint):
    path = tmp_path / "fines.csv"
    path.write_bytes(data.replace(b"{header}", ",".join(HEADER).encode()))

    with pytest.raises(CommandError, match=complaint):
        import_fines(path)
    assert not Event.objects.exists()


def test_a_bad_value_is_not_shown(write):
    with pytest.raises(CommandError) as caught:
        import_fines(write(changed(amount="4111111111111111")))

    assert "4111" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.csv", "."])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, name):
    with pytest.raises(CommandError, match="cannot be read"):
        import_fines(tmp_path / name)


def test_a_file_made_by_a_spreadsheet_is_read(write):
    path = write(ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")

    assert import_fines(path)["events appended"] == "15"


def test_an_unknown_database_is_an_error(write):
    with pytest.raises(CommandError, match="--database"):
        call_command("import_fines", write(ROWS), "--database", "nowhere")


def test_a_database_without_tables_is_an_error(write, tmp_path):
    new = f"sqlite:///{tmp_path}/new.sqlite3"
    with manage("import_fines", write(ROWS), database_url=new) as program:
        program.ended(code=1)
        said = program.error_text.strip()

    assert said.startswith("CommandError: The database 'default' has no tables.")


def test_every_activity_makes_another_event():
    made = {activity.event for activity in ACTIVITIES.values()}

    assert len(made) == len(ACTIVITIES)
    assert made == {each.cls for each in Fine.event_types}


# Interrupted


@pytest.mark.django_db(transaction=True)
def test_an_import_that_is_killed_can_be_resumed(write, monkeypatch, settings):
    monkeypatch.setenv("DJANGO_SECRET_KEY", settings.SECRET_KEY)  # fingerprints are made with it
    cases = [f"K{number}" for number in range(700)]
    rows = [fine(case) for case in cases]
    rows += [paid(case, "10.0", "10.0") for case in cases]
    rows += [paid(case, "20.05", "30.05") for case in cases]
    path = write(rows)

    with manage("import_fines", path, database_url=database_url()) as program:
        until(lambda: Event.objects.exists() or program.poll() is not None)
        program.kill()
        program.ended(code=-signal.SIGKILL)
    survived = Event.objects.count()
    report = import_fines(path)

    assert 0 < survived < len(rows)
    assert report["already there"] == f"{survived:,}"
    assert report["events appended"] == f"{len(rows) - survived:,}"
    assert report["paid in total"] == "21,035.00"
    assert Event.objects.count() == len(rows)


# The real file


@pytest.mark.skipif(
    "EVENTLOGS_FINES_CSV" not in os.environ, reason="EVENTLOGS_FINES_CSV is not set"
)
def test_the_real_file_is_imported_once():
    path = Path(os.environ["EVENTLOGS_FINES_CSV"])
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    totals = {
        each["case:concept:name"]: Decimal(each["totalPaymentAmount"])
        for each in rows
        if each["totalPaymentAmount"]
    }

    first, second = import_fines(path), import_fines(path)

    assert first["events appended"] == second["already there"] == f"{len(rows):,}"
    assert first["already there"] == second["events appended"] == "0"
    assert first["cases"] == f"{len(totals):,}"
    assert first["paid in total"] == f"{sum(totals.values()):,}"
    for case, total in totals.items():
        assert Fine.logs.reduce(log_of(case)).aggregate.paid == total
