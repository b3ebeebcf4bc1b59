"""
Demonstrate eventlogs with one payment: retries, races, rules, time travel and old events.

Everything that is printed really runs, on a separate SQLite file. The demo does not touch the
project's database or DATABASE_URL.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from textwrap import dedent, fill
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections

from eventlogs import (
    ConcurrentAppend,
    EventRecord,
    IdempotencyKeyReused,
    IdempotentReplay,
    InvalidEvent,
    LogId,
    LogManager,
    LogState,
    Reduction,
)
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import EventLog
from example_project.payments.deciders import PaymentRefused, capture, refund
from example_project.payments.events import Authorized, Captured, Payment, Requested
from example_project.settings import sqlite

ALIAS = "demo"
WIDTH = 80
PAUSE = 0.02  # seconds between steps, so that each has another time


class Command(BaseCommand):
    """Demonstrate eventlogs with one payment."""

    help = "Demonstrates eventlogs with one payment on an SQLite file, and explains each step."
    requires_system_checks = ()  # they would read the project's own database

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--database",
            type=Path,
            metavar="FILE",
            help="The SQLite file to use, which is kept. By default, a temporary file.",
        )

    def handle(self, *args: Any, database: Path | None, **options: Any) -> None:
        if database is not None:
            self.play(database.resolve())
            self.stdout.write("The file is kept. This command serves it, with the payment at")
            self.stdout.write(f"http://127.0.0.1:8000/payments/{self.log_id}/")
            self.stdout.write(
                f"  DATABASE_URL=sqlite:///{database.resolve()} python manage.py runserver",
                self.style.SQL_KEYWORD,
            )
            return
        with tempfile.TemporaryDirectory() as directory:
            self.play(Path(directory, "demo.sqlite3"))
        self.stdout.write("The file is deleted. To keep it: python manage.py demo --database FILE")

    def play(self, path: Path) -> None:
        """Run all scenes on one file."""
        self.stdout.write("The life of a payment", self.style.MIGRATE_HEADING)
        self.stdout.write(f"on SQLite, in {path}")
        with demo_database(path):
            try:
                call_command("migrate", database=ALIAS, verbosity=0)
            except DatabaseError as error:
                raise CommandError(f"{path} cannot be used: {error}.") from error
            self.payments = LogManager(Payment, using=ALIAS)
            # A new key for each run, because a file that is used again has the old keys.
            self.key = f"order-{self.payments.new_id().uuid.hex[-6:]}"
            state = self.create_and_authorize()
            self.log_id = state.log_id
            self.repeat_a_request(self.log_id)
            self.lose_a_race(self.log_id)
            self.decide(self.log_id)
            self.travel_in_time(self.log_id)
            self.read_an_old_event()
            self.refuse_bad_input(self.log_id)
            self.explain(self.log_id)
        self.stdout.write("")

    # Scenes

    def create_and_authorize(self) -> LogState:
        """Create a log and append an event."""
        payments, key = self.payments, self.key
        self.scene(
            "A log holds the events of one payment",
            """
            The first event creates the log. The version of a log is the number of its
            events. An append returns the new state, which the next append expects.
            """,
        )
        self.write_code(
            "payments = Payment.logs",
            f'key = "{key}"',
            "state = payments.create(Requested(amount=10_000), idempotency_key=key)",
        )
        state = payments.create(Requested(amount=10_000), idempotency_key=key)
        self.write_result(f"log       {state.log_id}")
        self.show(state)

        self.write_code('payments.append(state, Authorized(amount=10_000, approval_code="xyz123"))')
        state = payments.append(state, Authorized(amount=10_000, approval_code="xyz123"))
        self.show(state)
        return state

    def repeat_a_request(self, log_id: LogId) -> None:
        """Repeat a request with its idempotency key."""
        payments, key = self.payments, self.key
        self.scene(
            "A repeated request is processed once",
            """
            The response was lost, so the client repeats its request with the same key. It
            gets the first result, and nothing is appended. get_or_create() and
            get_or_append() return it; create() and append() raise an error that has it.
            """,
        )
        self.write_code("payments.get_or_create(Requested(amount=10_000), idempotency_key=key)")
        again, created = payments.get_or_create(Requested(amount=10_000), idempotency_key=key)
        self.write_result(f"log       {again.log_id}, created: {created}")
        self.write_result(f"version   {again.version}, as after the first call")
        self.write_result(f"events    {payments.version(log_id)}, as before")

        self.write_code("payments.create(Requested(amount=10_000), idempotency_key=key)")
        with self.refused(IdempotentReplay):
            payments.create(Requested(amount=10_000), idempotency_key=key)

        self.write_code("payments.create(Requested(amount=99), idempotency_key=key)")
        with self.refused(IdempotencyKeyReused):
            payments.create(Requested(amount=99), idempotency_key=key)

    def lose_a_race(self, log_id: LogId) -> None:
        """Append twice to one version."""
        payments = self.payments
        self.scene(
            "Concurrent writers do not overwrite each other",
            """
            Two writers read the same payment, and each captures 6000 of its 10000. The
            second append is refused, because the payment has changed. Its writer reads the
            payment again.
            """,
        )
        self.write_code(
            "one = two = payments.reduce(log_id)",
            "payments.append(one, Captured(amount=6_000))",
        )
        one = two = payments.reduce(log_id)
        self.show(payments.append(one, Captured(amount=6_000)))

        self.write_code("payments.append(two, Captured(amount=6_000))")
        with self.refused(ConcurrentAppend):
            payments.append(two, Captured(amount=6_000))

        self.write_code(
            "two = payments.reduce(log_id)",
            "payments.append(two, Captured(amount=two.aggregate.amount_outstanding))",
        )
        two = payments.reduce(log_id)
        self.show(payments.append(two, Captured(amount=two.aggregate.amount_outstanding)))

    def decide(self, log_id: LogId) -> None:
        """Append by way of a decider."""
        payments, key = self.payments, f"{self.key}-refund"
        self.scene(
            "Rules are plain functions",
            """
            A decider gets the payment, and yields events or raises an error. execute()
            reduces the log, calls the decider, appends the events, and repeats that if
            another writer was faster. A retry with the same key returns the first result.
            """,
        )
        self.write_code("payments.execute(log_id, capture, amount=1)")
        with self.refused(PaymentRefused):
            payments.execute(log_id, capture, amount=1)

        self.write_code(
            f'key = "{key}"',
            "payments.execute(log_id, refund, amount=2_500, idempotency_key=key)",
        )
        first = payments.execute(log_id, refund, amount=2_500, idempotency_key=key)
        self.show(first)

        self.write_code("payments.execute(log_id, refund, amount=2_500, idempotency_key=key)")
        again = payments.execute(log_id, refund, amount=2_500, idempotency_key=key)
        self.write_result(f"version   {again.version}, as after the first call")
        self.write_result(f"events    {payments.version(log_id)}, as before")

    def travel_in_time(self, log_id: LogId) -> None:
        """Reduce to earlier states."""
        payments = self.payments
        self.scene(
            "Nothing is overwritten",
            """
            You can rebuild any earlier state: as of a version, or as of a time.
            """,
        )
        self.write_code("payments.reduce(log_id, version=2)")
        self.write_payment(payments.reduce(log_id, version=2))

        at = payments.load(log_id, start=2, limit=1)[0].recorded_at
        self.write_code(
            f'at = datetime.fromisoformat("{at}")',
            "payments.reduce(log_id, at=at)",
        )
        self.write_payment(payments.reduce(log_id, at=at))

    def read_an_old_event(self) -> None:
        """Read an event that older code has stored."""
        payments = self.payments
        self.scene(
            "Old events stay readable",
            """
            Older code stored an event as payment.approved, without an approval code. The
            stored event is not changed: an alias finds today's class, and an upcaster
            converts the data to version 2.
            """,
        )
        state = payments.create(Requested(amount=500))
        old = EncodedEvent("payment.approved", schema_version=1, data='{"amount":500}')
        EventLog.objects.append(state.log_id, [old], expected_version=1, using=ALIAS)

        self.write_code("payments.load(old_id, start=1, decode=False)[0]   # as it was stored")
        [raw] = payments.load(state.log_id, start=1, decode=False)
        self.write_result(f"{raw.type}, schema version {raw.schema_version}: {raw.event}")

        self.write_code("payments.load(old_id, start=1)[0]                 # as it is decoded")
        [record] = payments.load(state.log_id, start=1)
        self.write_result(f"{record.event}")
        self.write_payment(payments.reduce(state.log_id))

    def refuse_bad_input(self, log_id: LogId) -> None:
        """Append invalid data."""
        payments = self.payments
        self.scene(
            "Bad data is refused before it is stored",
            """
            An event whose data would not be equal after decoding is refused. The error
            names the path and the rule, and never shows the value.
            """,
        )
        self.write_code("state = payments.reduce(log_id)")
        state = payments.reduce(log_id)
        self.write_payment(state)
        bad: dict[str, Any] = {'"2500"': "2500", "25.00": 25.00}
        for text, amount in bad.items():
            self.write_code(f"payments.append(state, Captured(amount={text}))")
            with self.refused(InvalidEvent):
                payments.append(state, Captured(amount=amount))

    def explain(self, log_id: LogId) -> None:
        """Read the events."""
        payments = self.payments
        self.scene(
            "The events explain the payment",
            """
            Events are loaded in pages, here newest first.
            """,
        )
        self.write_code("page = payments.load(log_id, reverse=True, limit=3)")
        page = payments.load(log_id, reverse=True, limit=3)
        for record in page:
            self.write_event(record)
        self.write_code("payments.load(log_id, reverse=True, start=page.next_start)")
        for record in payments.load(log_id, reverse=True, start=page.next_start):
            self.write_event(record)
        self.write_code("payments.reduce(log_id)")
        self.write_payment(payments.reduce(log_id))

    # Writing

    def scene(self, title: str, text: str) -> None:
        """Begin a scene."""
        self.stdout.write("")
        self.stdout.write(title, self.style.MIGRATE_HEADING)
        self.stdout.write(dedent(text).strip())

    def write_code(self, *lines: str) -> None:
        """Write the next statements."""
        time.sleep(PAUSE)
        self.stdout.write("")
        for line in lines:
            self.stdout.write(f"  >>> {line}", self.style.SQL_KEYWORD)

    def write_result(self, text: str) -> None:
        """Write a result."""
        self.stdout.write(f"      {text}")

    def show(self, state: LogState) -> None:
        """Write the last event of a log, and the payment as of it."""
        [record] = self.payments.load(state.log_id, start=state.version - 1)
        self.write_event(record)
        self.write_payment(self.payments.reduce(state.log_id, version=state.version))

    def write_event(self, record: EventRecord) -> None:
        """Write an event."""
        data = ", ".join(
            f"{field.name}={getattr(record.event, field.name)!r}" for field in fields(record.event)
        )
        self.write_result(f"event {record.index}   {record.type}({data})")

    def write_payment(self, reduction: Reduction[Payment]) -> None:
        """Write a version, and the payment as of it."""
        payment = reduction.aggregate
        self.stdout.write(
            f"      version {reduction.version} requested {payment.amount_requested}, "
            f"approved {payment.amount_approved}, captured {payment.amount_captured}, "
            f"refunded {payment.amount_refunded}",
            self.style.SUCCESS,
        )

    @contextmanager
    def refused(self, error: type[Exception]) -> Iterator[None]:
        """Expect an error, and write its message."""
        try:
            yield
        except error as refusal:
            text = f"{error.__name__}: {refusal}"
            self.stdout.write(
                fill(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6),
                self.style.ERROR,
            )
        else:
            raise CommandError(f"This should have been refused with {error.__name__}.")


@contextmanager
def demo_database(path: Path) -> Iterator[None]:
    """Add a database to the project's while the demo runs."""
    # Django has no documented way to add a database at run time.
    settings = connections.configure_settings({DEFAULT_DB_ALIAS: sqlite(path)})
    connections.settings[ALIAS] = settings[DEFAULT_DB_ALIAS]
    try:
        yield
    finally:
        connections[ALIAS].close()
        del connections[ALIAS], connections.settings[ALIAS]
