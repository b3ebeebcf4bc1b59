"""The errors: one tree, facts as attributes, safe to pickle."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ObjectDoesNotExist

import eventlogs
from eventlogs import EventRecord, LogId, LogState, exceptions
from eventlogs.exceptions import EventLogError

LOG_ID = LogId.new("account")
MOMENT = datetime(2026, 1, 31, tzinfo=UTC)
STATE = LogState(LOG_ID, 4, 17)
RECORD = EventRecord(LOG_ID, 3, 17, "account.noted", 1, None, {}, None, MOMENT)

EXAMPLES: list[tuple[EventLogError, dict[str, object]]] = [
    (EventLogError("broken"), {}),
    (exceptions.RegistrationError("cannot be"), {}),
    (
        exceptions.InvalidLogId("no id", expected_type="account"),
        {"expected_type": "account"},
    ),
    (exceptions.InvalidIdempotencyKey("is too long"), {"limit": "is too long"}),
    (
        exceptions.InvalidEvent("too deep", event_type="account.noted", path="$.note"),
        {"limit": "too deep", "event_type": "account.noted", "path": "$.note"},
    ),
    (
        exceptions.UnknownEventType("account.lost", log_id=LOG_ID, index=3),
        {"event_type": "account.lost", "log_id": LOG_ID, "index": 3},
    ),
    (
        exceptions.UndecodableEvent(
            "no upcaster",
            event_type="account.noted",
            schema_version=2,
            log_id=LOG_ID,
            index=3,
        ),
        {
            "reason": "no upcaster",
            "event_type": "account.noted",
            "schema_version": 2,
            "log_id": LOG_ID,
            "index": 3,
        },
    ),
    (exceptions.LogNotFound(LOG_ID), {"log_id": LOG_ID}),
    (exceptions.LogErased(LOG_ID, erased_at=MOMENT), {"log_id": LOG_ID, "erased_at": MOMENT}),
    (
        exceptions.LogArchived(LOG_ID, archived_at=MOMENT),
        {"log_id": LOG_ID, "archived_at": MOMENT},
    ),
    (
        exceptions.ArchiveUnavailable("account/a.jsonl.gz", reason="it cannot be read"),
        {"archive": "account/a.jsonl.gz", "reason": "it cannot be read"},
    ),
    (exceptions.NotArchived(LOG_ID), {"log_id": LOG_ID}),
    (
        exceptions.LogMoved(LOG_ID, using="default", to="shard_1", is_complete=True),
        {"log_id": LOG_ID, "using": "default", "to": "shard_1", "is_complete": True},
    ),
    (
        exceptions.LogMoved(LOG_ID, using="default", to="shard_1", is_complete=False),
        {"log_id": LOG_ID, "using": "default", "to": "shard_1", "is_complete": False},
    ),
    (
        exceptions.CannotErase(LOG_ID, using="default", role="app", owner="migrator"),
        {"log_id": LOG_ID, "using": "default", "role": "app", "owner": "migrator"},
    ),
    (
        exceptions.CannotImportErased(LOG_ID, using="default", role="app", owner="migrator"),
        {"log_id": LOG_ID, "using": "default", "role": "app", "owner": "migrator"},
    ),
    (
        exceptions.LayoutDiffers("buckets", using="default"),
        {"layout": "buckets", "using": "default"},
    ),
    (
        exceptions.CannotChangeLayout(
            using="default", reason="a copy was begun", action="Finish it"
        ),
        {"using": "default", "reason": "a copy was begun", "action": "Finish it"},
    ),
    (
        exceptions.CannotPartition(
            using="default", reason="the view seen reads it", action="Drop it"
        ),
        {"using": "default", "reason": "the view seen reads it", "action": "Drop it"},
    ),
    (
        exceptions.SubjectForgotten("member:42", key_id=LOG_ID.uuid),
        {"subject": "member:42", "key_id": LOG_ID.uuid},
    ),
    (exceptions.SubjectUnknown(), {}),
    (exceptions.KeyUnavailable("a key is missing"), {"reason": "a key is missing"}),
    (
        exceptions.VersionNotReached(LOG_ID, version=9, actual_version=4),
        {"log_id": LOG_ID, "version": 9, "actual_version": 4},
    ),
    (
        exceptions.LogCorrupted(LOG_ID, expected_index=2, actual_index=5),
        {"log_id": LOG_ID, "expected_index": 2, "actual_index": 5},
    ),
    (
        exceptions.LogFull(LOG_ID, actual_version=2**31 - 1, count=2),
        {"log_id": LOG_ID, "actual_version": 2**31 - 1, "count": 2},
    ),
    (
        exceptions.ConcurrentAppend(LOG_ID, expected_version=3, actual_version=4),
        {"log_id": LOG_ID, "expected_version": 3, "actual_version": 4},
    ),
    (
        exceptions.ConcurrentAppend(
            LOG_ID, expected_version=4, actual_version=4, expected_position=17, actual_position=9
        ),
        {"actual_version": 4, "expected_position": 17, "actual_position": 9},
    ),
    (
        exceptions.LogAlreadyExists(LOG_ID, actual_version=4),
        {"log_id": LOG_ID, "expected_version": 0, "actual_version": 4},
    ),
    (
        exceptions.NameTaken("member.email", LOG_ID),
        {"scope": "member.email", "log_id": LOG_ID},
    ),
    (
        exceptions.DatabasesDiffer("expected", log_id=LOG_ID, using="a", other="b"),
        {"reason": "expected", "log_id": LOG_ID, "using": "a", "other": "b"},
    ),
    (
        exceptions.IdempotentReplay("k", log_id=LOG_ID, index=3, state=STATE),
        {"idempotency_key": "k", "log_id": LOG_ID, "index": 3, "state": STATE},
    ),
    (
        exceptions.IdempotencyKeyReused("k", log_id=LOG_ID, index=3, count=2, reason="log"),
        {"idempotency_key": "k", "log_id": LOG_ID, "index": 3, "count": 2, "reason": "log"},
    ),
    (
        exceptions.IdempotencyKeyUndecided("k", log_id=LOG_ID, index=3, event_type="account.lost"),
        {"idempotency_key": "k", "log_id": LOG_ID, "index": 3, "event_type": "account.lost"},
    ),
    (
        exceptions.AppendOnlyError("Event", "save()"),
        {"model": "Event", "operation": "save()"},
    ),
    (
        exceptions.TransactionMustRetry(using="default", sqlstate="40001"),
        {"using": "default", "sqlstate": "40001"},
    ),
    (
        exceptions.HistoryDiffers(reason="an event is missing"),
        {"reason": "an event is missing"},
    ),
    (
        exceptions.CheckpointDiffers(
            17, using="default", reason="another event has the position of one that it names"
        ),
        {
            "position": 17,
            "using": "default",
            "reason": "another event has the position of one that it names",
        },
    ),
    (
        exceptions.ImportDiffers(LOG_ID, index=3, reason="its data is another one here"),
        {"log_id": LOG_ID, "index": 3, "reason": "its data is another one here"},
    ),
    (
        exceptions.ErasedElsewhere((LOG_ID,) * 4),
        {
            "log_ids": (LOG_ID,) * 4,
            "reason": "a log that was erased in the exported database is here",
        },
    ),
    (
        exceptions.AdoptionFailed("shop.order", 42, reason="its time is in the future"),
        {"model": "shop.order", "key": 42, "reason": "its time is in the future"},
    ),
    (
        exceptions.InvalidLock("shop/events.lock.json", reason="it is no file of makeevents"),
        {"path": "shop/events.lock.json", "reason": "it is no file of makeevents"},
    ),
    (
        exceptions.InvalidExport(17, "its index is out of bounds"),
        {"line": 17, "reason": "its index is out of bounds"},
    ),
    (exceptions.InvalidSeal(2, "it is no seal"), {"line": 2, "reason": "it is no seal"}),
    (exceptions.SealUnavailable("no key. Set one"), {"reason": "no key. Set one"}),
    (
        exceptions.FeedUnavailable("replica", using="default"),
        {"reason": "replica", "using": "default"},
    ),
    (exceptions.Unreachable(alias="redis"), {"alias": "redis"}),
    (
        exceptions.ProjectionFailed("balances", LOG_ID, 5),
        {"projection": "balances", "log_id": LOG_ID, "position": 5},
    ),
    (
        exceptions.ConstraintViolated(
            "balances", LOG_ID, 5, constraint="one_owner", fields=("owner",)
        ),
        {
            "projection": "balances",
            "log_id": LOG_ID,
            "position": 5,
            "constraint": "one_owner",
            "fields": ("owner",),
        },
    ),
    (
        exceptions.ProjectionTimedOut("balances", 30.0),
        {"projection": "balances", "timeout": 30.0},
    ),
    (exceptions.NotAcknowledged("It is full."), {"reason": "It is full."}),
    (exceptions.PublishingFailed("balances", 7), {"projection": "balances", "events": 7}),
    (exceptions.Unpublishable(RECORD, reason="too long"), {"ids": (RECORD.id,)}),
    (
        exceptions.ProjectionUnavailable("busy", projection="balances"),
        {"projection": "balances", "reason": "busy"},
    ),
]
EXAMPLES += [
    (
        exceptions.CannotMove(
            LOG_ID, reason=reason, using="default", to="shard_1", projection="sums", other="shard_2"
        ),
        {
            "log_id": LOG_ID,
            "reason": reason,
            "using": "default",
            "to": "shard_1",
            "projection": "sums",
            "other": "shard_2",
        },
    )
    for reason in exceptions.CannotMove.REASONS
]

each_error = pytest.mark.parametrize(
    ("error", "facts"), EXAMPLES, ids=[type(error).__name__ for error, _ in EXAMPLES]
)


def all_errors() -> set[type]:
    return {
        each
        for _, each in inspect.getmembers(exceptions, inspect.isclass)
        if issubclass(each, Exception) and each.__module__ == exceptions.__name__
    }


def test_every_error_is_tried_here_and_is_public():
    assert {type(error) for error, _ in EXAMPLES} == all_errors()
    assert {error.__name__ for error in all_errors()} <= set(eventlogs.__all__)


@each_error
def test_an_error_derives_from_the_root(error, facts):
    assert isinstance(error, EventLogError)


@each_error
def test_an_error_carries_its_facts(error, facts):
    assert {name: getattr(error, name) for name in facts} == facts


@each_error
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling(error, facts, protocol):
    restored = pickle.loads(pickle.dumps(error, protocol))

    assert type(restored) is type(error)
    assert (str(restored), repr(restored)) == (str(error), repr(error))
    assert vars(restored) == vars(error)
    assert {name: getattr(restored, name) for name in facts} == facts


@each_error
def test_a_message_ends_with_the_next_action(error, facts):
    sentences = str(error).split(". ")

    # The code that raises these errors writes the whole text.
    if not isinstance(error, exceptions.RegistrationError | exceptions.InvalidLogId):
        assert type(error) is EventLogError or len(sentences) > 1
        assert type(error) is EventLogError or sentences[-1].endswith(".")


def test_log_already_exists_has_its_own_message():
    error = exceptions.LogAlreadyExists(LOG_ID, actual_version=4)

    assert str(error).startswith(f"{LOG_ID} exists already, at version 4.")
    assert error.args == (str(error),)


class Missing(exceptions.LogNotFound):
    """An error of a project whose message uses a fact that it sets last."""

    def __init__(self, log_id: LogId, *, tenant: str) -> None:
        super().__init__(log_id)
        self.tenant = tenant

    def __str__(self) -> str:
        return f"{self.tenant} has no {self.log_id}"


@pytest.mark.parametrize("made_again", [copy.copy, lambda each: pickle.loads(pickle.dumps(each))])
def test_an_error_can_be_derived_from_with_a_message_of_later_facts(made_again):
    error = made_again(Missing(LOG_ID, tenant="acme"))

    assert type(error) is Missing
    assert str(error) == f"acme has no {LOG_ID}"
    assert vars(error)["log_id"] == LOG_ID


def test_required_facts_behind_the_first_ones_are_keyword_only():
    error: Any = exceptions.ConstraintViolated

    with pytest.raises(TypeError):
        error("balances", LOG_ID, 5, "one_owner", ("owner",))


def test_a_missing_log_is_an_object_that_does_not_exist():
    assert issubclass(exceptions.LogNotFound, ObjectDoesNotExist)


@pytest.mark.parametrize("name", ["InvalidLogId", "InvalidIdempotencyKey", "InvalidEvent"])
def test_an_invalid_argument_is_a_value_error(name):
    assert issubclass(getattr(exceptions, name), ValueError)


def test_a_log_that_exists_already_is_a_concurrent_append():
    assert issubclass(exceptions.LogAlreadyExists, exceptions.ConcurrentAppend)


def test_neither_an_idempotency_key_nor_data_is_part_of_a_message():
    replay = exceptions.IdempotentReplay("k-7f3a", log_id=LOG_ID, index=0, state=STATE)
    reuse = exceptions.IdempotencyKeyReused("k-7f3a", log_id=LOG_ID, index=0)

    assert "k-7f3a" not in f"{replay}{reuse}"


# Signals between modules of this package. Each is caught below the public API, which raises an
# error of the tree in its place.
SIGNALS = {
    "Damaged",  # of an archive: becomes ArchiveUnavailable, or a finding of archive --check
    "CannotOpen",  # a ciphertext that is not of its place: becomes UndecodableEvent
    "Failed",  # a batch of a projection: the event at fault, to be tried again or parked
    "Finding",  # the validation of a value: becomes InvalidEvent or InvalidIdempotencyKey
    "HandlerTimedOut",  # interrupts a handler: becomes ProjectionTimedOut
    "NoReplicaOf",  # of a database: that one is read
    "LeaseLost",  # another worker has the partition: the worker goes on with another one
    "Refused",  # an inline projection refuses an append: becomes ProjectionFailed
    "Sealed",  # data with encrypted values, which the reader opens and decodes again
    "RolledBack",  # ends the transaction of a batch that is to be taken back
    "Unknown",  # the code of an aggregate cannot be known: its reductions are not cached
    "Unfit",  # a value that cannot be unique: becomes InvalidEvent, or TypeError of find()
    "Unread",  # an event with unique fields cannot be read: its log is left out, and named
    "Unstorable",  # a reduction that cannot be cached: it is counted
    "Unwanted",  # a contract's test rolls a transaction back
    "Untrusted",  # an entry that is not used: it is a miss
    "_Damaged",  # a log that cannot be chained: it is left as it is, and named
    "_TakenBack",
}


def test_every_other_error_is_in_the_tree_or_a_signal():
    package = Path(eventlogs.__file__).parent
    declared = {
        (each.name, ast.unparse(base))
        for path in package.rglob("*.py")
        for each in ast.walk(ast.parse(path.read_text()))
        if isinstance(each, ast.ClassDef)
        for base in each.bases
    }
    outside = {name for name, base in declared if base in ("Exception", "BaseException")}

    assert outside - SIGNALS == {"EventLogError"}
