"""Chained histories: attacks on them are found, and old logs can be chained."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from queue import Queue
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.db.models import F, QuerySet

from eventlogs import ANY, LogId, LogManager
from eventlogs.events import chain
from eventlogs.models import Event, EventLog
from eventlogs.operations import chaining
from eventlogs.operations.chaining import Chained, ChainVerifier, chain_logs
from eventlogs.operations.verification import Finding, Scope
from eventlogs.stores import digested_events, store_for
from tests.accounts import Account, Deposited, Opened

TRIGGERS = {
    "eventlogs_event": "eventlogs_event_refuse_change",
    "eventlogs_eventlog": "eventlogs_eventlog_keep_chain",
}
OPENED, DEPOSITED = Opened(owner="Ann"), Deposited(amount=5)


def found(**options) -> list[Finding]:
    return list(ChainVerifier().verify(Scope("default", **options)))


def events(log=None) -> QuerySet[Event]:
    rows: QuerySet[Event] = QuerySet(Event)
    return rows if log is None else rows.filter(log_id=log.log_id.uuid)


def logs(log) -> QuerySet[EventLog]:
    rows: QuerySet[EventLog] = QuerySet(EventLog)
    return rows.filter(pk=log.log_id.uuid)


def set_triggers(how: str) -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            for table, trigger in TRIGGERS.items():
                cursor.execute(f"ALTER TABLE {table} {how} TRIGGER {trigger}")


@pytest.fixture
def accounts(transactional_db, settings) -> LogManager[Account]:
    settings.EVENTLOGS = {"CHAIN": True}
    return LogManager(Account, store=store_for("default"))


@pytest.fixture
def log(accounts):
    """A chained log of eight events, beside one that stays whole."""
    accounts.create(OPENED, DEPOSITED)
    state = accounts.create(OPENED, *[Deposited(amount=each) for each in range(5)])
    state = accounts.append(state, DEPOSITED, idempotency_key="a key")
    return accounts.append(state, DEPOSITED, metadata={"user": "Ann"})


@pytest.fixture
def spoil(log) -> Iterator[None]:
    """What the owner of the tables can do: the triggers that prevent changes are disabled."""
    set_triggers("DISABLE")
    yield
    set_triggers("ENABLE ALWAYS")


def test_whole_chains_have_no_findings(log):
    told: list[int] = []
    verifier = ChainVerifier()

    assert list(verifier.verify(Scope("default", tell=told.append))) == []
    assert (verifier.chained, verifier.unchained, sum(told)) == (2, 0, 10)


def test_the_head_is_the_digest_of_the_last_event(log):
    pairs = digested_events.of_log("default", log.log_id.uuid)
    digests = list(chain.chained(None, [each.event for each in pairs]))

    assert [each.digest for each in pairs] == digests
    assert bytes(logs(log).values_list("head", flat=True).get()) == digests[-1]


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"amount": 1_000_000}},
        {"metadata": {"user": "Bob"}},
        {"type": "account.withdrawn"},
        {"schema_version": 2},
        {"idempotency_key": "another"},
        {"recorded_at": F("recorded_at") + timedelta(microseconds=1)},
        {"digest": bytes(32)},
        {"digest": None},
        {"type": "a\nb"},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_changed_event_is_named(log, spoil, change):
    events(log).filter(index=3).update(**change)

    [finding] = found()
    assert (finding.check, finding.subject, finding.index) == ("chain", str(log.log_id), 3)


def test_an_event_with_a_digest_computed_anew_gives_away_the_next(log, spoil):
    events(log).filter(index=3).update(data={"amount": 1_000_000})
    [_, _, (_, before), (changed, _), *_] = digested_events.of_log("default", log.log_id.uuid)
    events(log).filter(index=3).update(digest=chain.digest(before, changed))

    [finding] = found()
    assert finding.index == 4


def test_two_events_that_change_places(log, spoil):
    events(log).filter(index=2).update(index=100)
    events(log).filter(index=3).update(index=2)
    events(log).filter(index=100).update(index=3)

    [finding] = found()
    assert finding.index == 2


def test_an_event_that_is_removed(log, spoil):
    events(log).filter(index=4)._raw_delete("default")

    [finding] = found()
    assert (finding.index, "should be" in finding.message) == (4, True)


@pytest.mark.fence
def test_an_event_that_is_inserted_between_others(log, spoil):
    for index in range(7, 3, -1):
        events(log).filter(index=index).update(index=index + 1)
    copy = events(log).get(index=3)
    copy.pk, copy.index = None, 4
    events().bulk_create([copy])
    logs(log).update(version=9)

    [finding] = found()
    assert finding.index == 4


@pytest.mark.parametrize("version", [8, 6])
def test_an_end_that_is_cut_off(log, spoil, version):
    events(log).filter(index__gte=6)._raw_delete("default")
    logs(log).update(version=version)

    [finding] = found()
    assert finding.subject == str(log.log_id)
    assert ("end here" if version == 8 else "head") in finding.message


def test_a_history_that_is_rewritten_with_its_head_is_whole(log, spoil):
    """What the docs say: the owner can compute all digests anew. Only a seal finds that."""
    events(log).filter(index__gte=6)._raw_delete("default")
    last = digested_events.of_log("default", log.log_id.uuid)[-1]
    logs(log).update(version=6, head=last.digest)

    assert found() == []


@pytest.mark.fence
def test_an_event_that_was_inserted_past_the_log(log, spoil):
    copy = events(log).get(index=7)
    copy.pk, copy.index = None, 8
    events().bulk_create([copy])

    [finding] = found()
    assert finding.index == 8


def test_a_head_that_is_removed(log, spoil):
    logs(log).update(head=None)

    messages = [each.message for each in found()]
    assert {each.split(":")[0].split(". ")[0] for each in messages} == {
        "it has a digest, and its log is not chained",
        "1 log is not chained, although EVENTLOGS['CHAIN'] is on",
    }
    assert "find out who removed the chain" in messages[-1]


def test_events_without_a_log(log, spoil):
    logs(log)._raw_delete("default")

    [finding] = found()
    assert finding.subject == str(log.log_id.uuid)


def test_a_log_of_another_type(log, spoil):
    logs(log).update(log_type="accounts")

    [finding] = found()
    assert finding.index == 0


def test_log_types_and_after(log, spoil):
    events(log).filter(index=3).update(data={})

    assert found(log_types=["accounts"]) == []
    assert found(after=log.log_id) == []
    assert len(found(log_types=["account"])) == 1


def test_appends_that_come_while_a_log_is_verified(accounts, log, monkeypatch):
    read = digested_events.by_log

    def by_log(*args, **options):
        accounts.append(log, DEPOSITED, DEPOSITED)
        yield from read(*args, **options)

    monkeypatch.setattr(digested_events, "by_log", by_log)

    assert found() == []


def test_pages(log, monkeypatch):
    monkeypatch.setattr(digested_events, "PAGE", 3)
    monkeypatch.setattr(chaining, "PAGE", 1)

    assert found() == []


@pytest.mark.postgresql
@pytest.mark.parametrize("change", [{"version": 9}, {"head": None}])
def test_a_change_that_breaks_a_chain_is_refused(log, change):
    """An append by a release that knows no chains would leave events without a digest."""
    with pytest.raises(IntegrityError, match="is chained"), transaction.atomic():
        logs(log).update(**change)


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "change",
    [{"digest": b"x"}, {"data": {}, "digest": b"x"}, {"digest": None}],
    ids=lambda change: "-".join(change),
)
def test_a_digest_is_never_replaced(log, change):
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        events(log).filter(index=1).update(**change)


@pytest.mark.postgresql
def test_a_digest_that_was_missing_comes_alone(accounts, settings):
    settings.EVENTLOGS = {}
    log = accounts.create(Deposited(amount=1))
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        events(log).update(digest=bytes(32), data={"amount": 1.0})

    events(log).update(digest=bytes(32))


# Old logs


@pytest.fixture
def old(accounts, settings):
    """Logs that are not chained."""
    settings.EVENTLOGS = {}
    accounts.create(OPENED, DEPOSITED, metadata={"user": "Ann"})
    return accounts.create(OPENED, *[DEPOSITED] * 9, idempotency_key="a key")


def test_without_the_setting_logs_are_not_chained(old):
    verifier = ChainVerifier()

    assert list(verifier.verify(Scope("default"))) == []
    assert (verifier.chained, verifier.unchained) == (0, 2)
    assert not events().filter(digest__isnull=False).exists()


def test_with_the_setting_it_is_a_finding(old, settings):
    settings.EVENTLOGS = {"CHAIN": True}

    [finding] = found()
    assert "2 logs are not chained" in finding.message


@pytest.mark.parametrize("page", [2_000, 3])
def test_old_logs_are_chained_and_stay_chained(accounts, old, monkeypatch, page):
    monkeypatch.setattr(chaining, "PAGE", page)

    *_, done = chain_logs("default")

    assert done == Chained(logs=2, events=12)
    verifier = ChainVerifier()
    # No setting: the log alone says that it is chained.
    accounts.append(old, DEPOSITED, DEPOSITED)
    assert list(verifier.verify(Scope("default"))) == []
    assert (verifier.chained, verifier.unchained) == (2, 0)
    assert list(chain_logs("default")) == []


def test_digests_are_those_of_a_log_that_was_chained_from_the_start(old):
    *_, _done = chain_logs("default")

    pairs = digested_events.of_log("default", old.log_id.uuid)
    assert [each.digest for each in pairs] == list(
        chain.chained(None, [each.event for each in pairs])
    )


def test_some_types_are_chained(old):
    assert list(chain_logs("default", log_types=["payment"])) == []


def test_a_run_that_was_killed_is_resumed(accounts, old, monkeypatch):
    monkeypatch.setattr(chaining, "PAGE", 3)
    steps = chain_logs("default", log_types=["account"])
    next(steps)
    next(steps)
    steps.close()
    accounts.append(old, DEPOSITED)

    *_, done = chain_logs("default")

    assert found() == []
    assert done.logs >= 1


def test_appends_beside_a_run(accounts, old, monkeypatch):
    monkeypatch.setattr(chaining, "PAGE", 3)
    state = old
    for _ in chain_logs("default"):
        state = accounts.append(state, DEPOSITED)

    assert found() == []
    assert not events().filter(digest__isnull=True).exists()


def test_a_log_that_was_changed_since_an_interrupted_run(old, monkeypatch):
    monkeypatch.setattr(chaining, "PAGE", 3)
    steps = chain_logs("default")
    for _ in range(3):
        next(steps)
    steps.close()
    set_triggers("DISABLE")
    try:
        events(old).filter(index=1).update(data={"amount": 7})
    finally:
        set_triggers("ENABLE ALWAYS")

    *_, done = chain_logs("default")

    [damaged] = done.damaged
    assert (damaged.subject, damaged.index) == (str(old.log_id), 1)
    assert "does not fit the digest" in damaged.message


@pytest.mark.parametrize("page", [2_000, 3])
@pytest.mark.parametrize("cut", ["an event", "the end"])
def test_a_damaged_log_is_not_chained_and_holds_up_no_other(accounts, old, monkeypatch, cut, page):
    monkeypatch.setattr(chaining, "PAGE", page)
    accounts.create(OPENED)  # behind it
    set_triggers("DISABLE")
    events(old).filter(index=9 if cut == "the end" else 4)._raw_delete("default")
    set_triggers("ENABLE ALWAYS")

    *_, done = chain_logs("default")

    [damaged] = done.damaged
    assert (damaged.subject, damaged.index) == (str(old.log_id), 9 if cut == "the end" else 4)
    assert "imported" not in damaged.message
    assert logs(old).values_list("head", flat=True).get() is None
    assert done.logs == 2
    assert not QuerySet(EventLog).exclude(pk=old.log_id.uuid).filter(head=None).exists()


@pytest.mark.skipif(connection.vendor == "sqlite", reason="one writer at a time")
def test_a_log_that_somebody_has_locked_is_done_at_the_end(accounts, old):
    """To wait for it while other logs are locked would be a deadlock with a transaction of both."""
    [first, last] = QuerySet(EventLog).order_by("pk").values_list("pk", flat=True)
    steps = Queue[int]()

    def chain_all() -> None:
        try:
            for done in chain_logs("default"):
                steps.put(done.logs)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            accounts.append(LogId.stored("account", last), DEPOSITED, expected_version=ANY)
            run = pool.submit(chain_all)
            assert steps.get(timeout=20) == 1
            accounts.append(LogId.stored("account", first), DEPOSITED, expected_version=ANY)
        run.result(timeout=20)

    assert steps.get(timeout=20) == 2
    verifier = ChainVerifier()
    assert list(verifier.verify(Scope("default"))) == []
    assert (verifier.chained, verifier.unchained) == (2, 0)


@pytest.mark.parametrize("page", [2_000, 3])
def test_a_step_that_the_database_aborts_is_run_again(old, monkeypatch, page):
    monkeypatch.setattr(chaining, "PAGE", page)
    calls: list[int] = []

    def abort(execute: Any, sql: str, *arguments: Any) -> Any:
        answer = execute(sql, *arguments)
        if sql.startswith("UPDATE"):
            calls.append(1)
            if len(calls) in (1, 3):
                raise OperationalError(1213, "Deadlock found")  # as MariaDB reports it
        return answer

    with connection.execute_wrapper(abort):
        *_, done = chain_logs("default")

    assert done == Chained(logs=2, events=12)
    verifier = ChainVerifier()
    assert list(verifier.verify(Scope("default"))) == []
    assert verifier.chained == 2
