"""Erasure as docs/storage.md says: afterwards no table and no cache holds the text any more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.core.cache import caches as django_caches
from django.db import connection, models

import eventlogs
from eventlogs import (
    LogErased,
    LogIdField,
    LogManager,
    LogNotFound,
    Projection,
    ReductionProjection,
    handles,
    projection,
)
from eventlogs.caches import backends
from eventlogs.models import (
    Checkpoint,
    ErasedLog,
    EventLog,
    ParkedEvent,
    ProjectionAction,
    ProjectionState,
)
from eventlogs.operations import erasure, unique_values
from eventlogs.operations.erasure import erase, forget_copies, preview, tombstone
from eventlogs.projections import rebuild, shadow_tables
from eventlogs.reductions.snapshots import Snapshots
from eventlogs.stores import erasing, store_for
from tests.accounts import Account, Deposited, Noted, Opened
from tests.projections.crashes import kill_this_process, killed_in
from tests.projections.tables import Known, made
from tests.tables import Table

pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "Countess-of-Lovelace"
DOC = Path(eventlogs.__file__).parent.parent / "docs" / "storage.md"
THE_UUID = "01890a5d-ac96-774b-bcce-b302099a8057"


class Row(Table):
    log_id = LogIdField(primary_key=True)
    owner = models.CharField(max_length=50, default="")

    class Meta:
        app_label = "tests_of_erasure"

    def __str__(self):
        return self.owner


class InlineRow(models.Model):
    log_id = LogIdField(primary_key=True)
    owner = models.CharField(max_length=50, default="")

    class Meta:
        app_label = "tests_of_erasure"

    def __str__(self):
        return self.owner


class Reduced(Table):
    log_id = LogIdField(primary_key=True)
    owner = models.CharField(max_length=50, default="")

    class Meta:
        app_label = "tests_of_erasure"

    def __str__(self):
        return self.owner


class ByOwner(models.Model):
    owner = models.CharField(max_length=50, primary_key=True)

    class Meta:
        app_label = "tests_of_erasure"

    def __str__(self):
        return self.owner


class Owners(Projection):
    log_types = ["account"]
    max_attempts = 1

    @handles(Opened)
    def opened(self, row, record):
        row.owner = record.event.owner

    @handles(Noted)
    def noted(self, row, record):
        raise ValueError(f"{row.owner} noted something")


@projection("erased-owners")
class AsyncOwners(Owners):
    model = Row


@projection("erased-inline")
class InlineOwners(Projection):
    log_types = ["account"]
    model = InlineRow
    mode = Projection.INLINE
    opened = Owners.opened


@projection("erased-reduced")
class ReducedOwners(ReductionProjection):
    aggregate = Account
    model = Reduced


@projection("erased-shared")
class SharedOwners(Projection):
    log_types = ["account"]
    model = ByOwner

    def key(self, record):
        return record.event.owner

    @handles(Opened)
    def opened(self, row, record):
        pass


EACH = (AsyncOwners, InlineOwners, ReducedOwners)
KNOWN = Known(*EACH, SharedOwners)
MODELS = (Row, InlineRow, Reduced, ByOwner)


@pytest.fixture(autouse=True)
def _tables(transactional_db):
    with made(*MODELS):
        yield


@pytest.fixture(params=["default", pytest.param("redis", marks=pytest.mark.postgresql)])
def accounts(request, settings):
    """The logs of accounts, with reductions in a cache."""
    settings.EVENTLOGS = {
        "CACHE": request.param,
        "REFRESHER": "eventlogs.refreshers.ImmediateRefresher",
    }
    django_caches[request.param].clear()
    yield LogManager(Account, cache=request.param)
    django_caches[request.param].clear()


def statements(heading):
    """Return the SQL that the page gives under a heading, for this database."""
    page = DOC.read_text().partition("## Erasure")[2].partition("## Backups")[0]
    _, _, rest = page.partition(heading)
    [block] = re.findall(r"```sql\n(.*?)```", rest, re.DOTALL)[:1]
    for each in block.split(";"):
        statement = each.strip()
        if statement in ("", "BEGIN", "COMMIT"):
            continue
        if connection.vendor != "postgresql":
            if statement.startswith("ALTER TABLE"):
                continue
            statement = statement.replace(
                """jsonb_set(data, '{owner}', '"erased"')""", "json_set(data, '$.owner', 'erased')"
            )
        if connection.vendor == "mysql":
            statement = statement.replace('"index"', "`index`")
        yield statement


def erase_log(log_id):
    """Erase a log, and leave its copies."""
    erasing.erase("default", log_id, by="grace", reason="an order")


def change(heading, log_id):
    """Run the statements of the page."""
    uuid = str(log_id.uuid) if connection.vendor == "postgresql" else log_id.uuid.hex
    with connection.cursor() as cursor:
        for statement in statements(heading):
            cursor.execute(statement.replace(THE_UUID, uuid).replace("%", "%%"))


def places(cache="default"):
    """Return the tables and cache entries that contain the text."""
    found = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            for row in cursor.fetchall():
                if any(SECRET in _text(value) for value in row):
                    found.append(table)
    backend = django_caches[cache]
    if hasattr(backend, "_cache") and isinstance(backend._cache, dict):
        values = list(backend._cache.values())
    else:
        client = backend.client.get_client(write=False)  # type: ignore[attr-defined]
        values = client.mget([*client.scan_iter(match="*eventlogs.reduction*"), "x"])
    return sorted({*found, *(["cache"] if any(SECRET in _text(v) for v in values) else [])})


def _text(value):
    if isinstance(value, memoryview):
        value = bytes(value)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def fill(accounts):
    """Create a log whose owner is stored in every place, and one that stays."""
    with KNOWN.declared():
        state = accounts.create(
            Opened(SECRET), metadata={"user": SECRET}, idempotency_key=f"open-{SECRET}"
        )
        kept = accounts.create(Opened("Mary"))
        for each in (*EACH, SharedOwners):
            each.catch_up()
    accounts.append(state, Noted("x"))
    AsyncOwners.catch_up()  # fails with an error whose text shows the owner
    AsyncOwners.retry(state.log_id, by="grace")
    many = accounts.append(accounts.reduce(state.log_id), *[Deposited(1)] * 1_100)
    ReducedOwners.catch_up()
    accounts.reduce(state.log_id)
    start = Account.without_events(state.log_id)
    _, writes = Snapshots(Account, "default").fold(start, store_for("default"), version=1_100)
    assert [write() for write in writes] == [True]
    return many.log_id, kept.log_id


def test_an_erased_log_is_in_no_table_and_no_cache(accounts, settings):
    cache = settings.EVENTLOGS["CACHE"]
    log_id, kept = fill(accounts)
    assert {"cache", Row._meta.db_table, ParkedEvent._meta.db_table} <= set(places(cache))

    with KNOWN.declared():
        assert erase(log_id, reason="an order", by="grace").tombstone.events == 1_102
        done = erase(log_id, reason="an order", by="grace").copies
        assert done.rows == ("erased-inline", "erased-owners", "erased-reduced")
        assert done.to_rebuild == ("erased-shared",)
        assert done.entries == 0  # the first call has deleted them
        SharedOwners.rebuild(restart=True)

        assert places(cache) == []
        done_by = ProjectionAction.objects.filter(by="grace").values_list("action", "log_id")
        assert list(done_by) == [("retried", None)]
        assert not ProjectionAction.objects.filter(log_id=log_id).exists()
        assert [Row.objects.get().log_id, Reduced.objects.get().log_id] == [kept, kept]
        assert forget_copies(str(log_id)).entries == 0
    with pytest.raises(LogErased):
        accounts.reduce(log_id)
    assert backends.forget(kept) >= 0


def test_a_redacted_event_is_in_no_table_and_no_cache_and_its_log_stays_usable(accounts, settings):
    cache = settings.EVENTLOGS["CACHE"]
    log_id, _ = fill(accounts)

    with KNOWN.declared():
        change("Redact an event.**", log_id)
        change_key(log_id)
        done = forget_copies(log_id)
        SharedOwners.rebuild(restart=True)

        assert done.to_rebuild == ("erased-shared",)
        assert places(cache) == []
        for model in (Row, InlineRow, Reduced):
            assert model._default_manager.get(pk=log_id).owner == "erased"
        assert [each.details for each in ParkedEvent.objects.all()] == [""]
    assert accounts.reduce(log_id).aggregate.owner == "erased"


def change_key(log_id):
    """Delete a key, with the trigger disabled, as the statements around it on the page do."""
    if connection.vendor != "postgresql":
        change("If the idempotency key itself", log_id)
        return
    with connection.cursor() as cursor:
        trigger = "TRIGGER eventlogs_event_refuse_change"
        cursor.execute(f"ALTER TABLE eventlogs_event DISABLE {trigger}")
        change("If the idempotency key itself", log_id)
        cursor.execute(f"ALTER TABLE eventlogs_event ENABLE ALWAYS {trigger}")


def test_without_the_third_step_the_text_stays_in_the_cache_and_the_rows(accounts, settings):
    log_id, _ = fill(accounts)

    erase_log(log_id)

    assert {"cache", Row._meta.db_table} <= set(places(settings.EVENTLOGS["CACHE"]))


def test_the_row_of_an_erased_log_can_be_removed_from_code(accounts):
    with KNOWN.declared("erased-owners", "erased-inline"):
        one, two = (accounts.create(Opened(SECRET)).log_id for _ in range(2))
        AsyncOwners.catch_up()
        erase_log(one)
        erase_log(two)

        for each in (AsyncOwners, InlineOwners):
            assert each.rebuild(one) == 0
            with pytest.raises(LogNotFound):
                each.rebuild(one)
            assert each.model._default_manager.get().log_id == two
            assert each.verify(repair=True).differences[0].is_repaired
            assert not each.model._default_manager.exists()


def test_the_shadow_table_of_an_interrupted_rebuild_is_dropped(accounts):
    with KNOWN.declared("erased-owners"):
        accounts.create(Opened("Mary"))
        state = accounts.create(Opened(SECRET))
        AsyncOwners.catch_up()
        steps = rebuild.rebuild_steps(AsyncOwners)
        next(steps)
        steps.close()
        assert shadow_tables.exists(Row, "default")

        erase_log(state.log_id)
        assert forget_copies(state.log_id).to_rebuild == ()

        assert places() == []
        assert not shadow_tables.exists(Row, "default")
        assert not Checkpoint.objects.filter(is_rebuild=True).exists()
        assert AsyncOwners.rebuild() == 1


def test_the_shadow_table_of_a_projection_that_has_become_inline_is_dropped(accounts, monkeypatch):
    with KNOWN.declared("erased-owners"):
        state = accounts.create(Opened(SECRET))
        AsyncOwners.catch_up()
        steps = rebuild.rebuild_steps(AsyncOwners)
        next(steps)
        steps.close()
        monkeypatch.setattr(AsyncOwners, "mode", Projection.INLINE)

        erase_log(state.log_id)
        assert forget_copies(state.log_id).to_rebuild == ()

        assert places() == []
        assert not shadow_tables.exists(Row, "default")
        assert not Checkpoint.objects.filter(is_rebuild=True).exists()


def test_a_running_rebuild_is_not_stopped_and_is_named(accounts):
    with KNOWN.declared("erased-owners"):
        state = accounts.create(Opened(SECRET))
        AsyncOwners.catch_up()
        steps = rebuild.rebuild_steps(AsyncOwners)
        next(steps)

        erase_log(state.log_id)
        assert forget_copies(state.log_id).to_rebuild == ("erased-owners",)

        steps.close()
        AsyncOwners.rebuild(restart=True)
        assert places() == []
    assert ProjectionState.objects.get(name="erased-owners").rebuild_version is None


def test_a_preview_names_all_that_would_go_and_changes_nothing(accounts):
    log_id, _ = fill(accounts)
    with KNOWN.declared():
        found = preview(log_id)
        assert (found.events, found.idempotency_keys) == (1_102, 1)
        assert (found.unique_values, found.subjects) == (0, 0)
        assert sorted(found.rows) == ["erased-inline", "erased-owners", "erased-reduced"]
        assert found.to_rebuild == ("erased-shared",)
        assert accounts.reduce(log_id).version == 1_102
        assert tombstone(log_id) is None

        erase(str(log_id), reason=" an order ", by=" grace ")

        with pytest.raises(LogErased):
            preview(log_id)
    stone = tombstone(str(log_id))
    assert (stone.log_id, stone.events, stone.reason, stone.erased_by) == (
        log_id,
        1_102,
        "an order",
        "grace",
    )
    assert len(stone.digest) == 64


@pytest.mark.parametrize(
    "options",
    [{"reason": " ", "by": "me"}, {"reason": "x", "by": ""}, {"reason": "x", "by": "x" * 256}],
)
def test_an_erasure_without_a_reason_or_name_is_refused(accounts, options):
    log_id = accounts.create(Opened("ada")).log_id
    with pytest.raises(ValueError, match="is "):
        erase(log_id, **options)
    assert accounts.reduce(log_id).version == 1


def test_an_inline_projection_and_a_worker_that_has_not_come_so_far_go_on(accounts):
    with KNOWN.declared("erased-owners", "erased-inline"):
        early = accounts.create(Opened("Mary"))
        AsyncOwners.catch_up()
        log_id = accounts.create(Opened(SECRET)).log_id
        late = accounts.create(Opened("Jane"))

        assert erase(log_id, reason="an order", by="grace").copies.rows == (
            "erased-inline",
            "erased-owners",
        )
        AsyncOwners.catch_up()

        assert {each.log_id for each in Row.objects.all()} == {early.log_id, late.log_id}
        assert AsyncOwners.wait_for(late.position, timeout=1)
        assert not AsyncOwners.wait_for(late.position - 1, timeout=0.05)  # it is not stored
        assert AsyncOwners.rebuild() == 2
        assert AsyncOwners.verify().differences == ()
        assert {each.log_id for each in InlineRow._default_manager.all()} == {
            early.log_id,
            late.log_id,
        }


def test_a_cached_reduction_of_an_erased_log_is_no_answer(accounts):
    """No process has to be told: an entry is an answer only if its log proves it."""
    log_id = accounts.create(Opened(SECRET)).log_id
    assert accounts.reduce(log_id).aggregate.owner == SECRET

    erase_log(log_id)  # the cache keeps its entry

    with pytest.raises(LogErased):
        accounts.reduce(log_id)
    with pytest.raises(LogErased):
        accounts.execute(log_id, lambda account: [Noted(account.owner)])


STEPS = [
    (erasing, "_erase"),
    (backends, "forget"),
    (erasure, "forget_failures"),
    (unique_values, "forget"),
    (rebuild, "discard_unfinished"),
    (rebuild, "remove_row"),
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("module", "name"), STEPS)
def test_an_erasure_that_is_killed_is_finished_by_the_next_one(
    accounts, settings, monkeypatch, module, name, when
):
    cache = settings.EVENTLOGS["CACHE"]
    log_id, kept = fill(accounts)
    step = getattr(module, name)

    def dying(*arguments, **options):
        if when == "after":
            step(*arguments, **options)
        kill_this_process()

    with KNOWN.declared():
        with monkeypatch.context() as patch:
            patch.setattr(module, name, dying)
            assert killed_in(lambda: erase(log_id, reason="the first", by="hal"))

        was_erased = name != "_erase"  # its transaction was not committed
        assert ErasedLog.objects.exists() is was_erased
        assert EventLog.objects.filter(pk=log_id.uuid).exists() is not was_erased
        if not was_erased:
            assert accounts.reduce(log_id).version == 1_102
        assert erase(log_id, reason="the second", by="grace").is_new is not was_erased
        SharedOwners.rebuild(restart=True)

        assert ErasedLog.objects.get().erased_by == ("hal" if was_erased else "grace")
        if cache != "default":  # a cache in the memory of the process that was killed
            assert places(cache) == []
        assert [Row.objects.get().log_id, Reduced.objects.get().log_id] == [kept, kept]
