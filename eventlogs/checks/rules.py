"""
System checks: what would go wrong later, said at startup.

    E001  EVENTLOGS is not a dict, or has a value of another kind or range than it must
    W002  EVENTLOGS has a key that eventlogs does not know
    E003  EVENTLOGS["CACHE"] names no cache
    E004  an SQLite database whose transactions are not IMMEDIATE
    E005  USE_TZ is off
    E006  two event classes claim one name, or an upcaster is missing or too many
    E007  the fields of an event class cannot be encoded
    W008  the triggers that keep events append-only are missing (with --database)
    E009  the cache would pickle reductions
    W010  the cache is the memory of one process (with --deploy)
    W011  the trigger that fences the feed is missing (with --database)
    W012  the sequence of positions does not give out one after the other (with --database)
    W013  the events are on several servers, so they have no feed (with --database)
    W014  a subscription writes the events, so they have no feed (with --database)
    W020  a worker refreshes reductions, in a cache that only this process sees
    W021  the cache is Redis without time-outs
    W022  reductions of an aggregate cannot be cached
    W023  they are not cached, because the code that makes them cannot be known
    W030  the rows of a projection are to be made anew (with --database)
    E031  a projection's rows cannot be found by their logs
    E032  a projection's rows are in another database than the events
    E033  a projection in a database that has no feed
    W036  logs in a further database, whose read models are not kept there (with --database)
    E037  a read model's db_default is another value each time
    E038  two projections write the rows of one table
    E039  a read model inherits from a model with a table of its own
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from reprlib import repr as short
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.cache import InvalidCacheBackendError, caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router

from eventlogs import conf
from eventlogs.aggregates import Aggregate, aggregates
from eventlogs.caches.backends import is_raw_redis, is_safe
from eventlogs.caches.entries import why_not
from eventlogs.caches.fingerprints import covers, why_unknown
from eventlogs.conf import DEFAULTS, HEALTH, MAX_PAGE_SIZE
from eventlogs.events.codec import codec_for
from eventlogs.events.registry import registry
from eventlogs.exceptions import RegistrationError
from eventlogs.feed.sources import BY_VENDOR, feed_source_for
from eventlogs.fields import LogIdField
from eventlogs.models import Event, EventLog, ProjectionState
from eventlogs.policies import policy_from
from eventlogs.projections.base import RowProjection, projections
from eventlogs.projections.databases import may_have_rows
from eventlogs.projections.defaults import is_unsteady
from eventlogs.refreshers import MessageRefresher, refresher_for
from eventlogs.stores.made_for_tests import is_test_database

FEEDS = frozenset(BY_VENDOR)
NO_BACKEND = (ImportError, InvalidCacheBackendError)
REFUSE_CHANGE = "eventlogs_event_refuse_change"
REFUSE_TRUNCATE = "eventlogs_event_refuse_truncate"

# The triggers that a table lacks: that of events, and each of its partitions. A statement may name
# a partition itself, and PostgreSQL copies only triggers FOR EACH ROW to partitions.
MISSING_TRIGGERS = """
SELECT wanted.name, tables.relid::regclass::text, tables.relid = 'eventlogs_event'::regclass
FROM (SELECT 'eventlogs_event'::regclass AS relid
      UNION SELECT relid FROM pg_partition_tree('eventlogs_event')) AS tables,
     unnest(%s::text[]) AS wanted (name)
WHERE NOT EXISTS (
    SELECT FROM pg_trigger
    WHERE tgrelid = tables.relid AND tgname = wanted.name AND tgenabled = 'A')
ORDER BY 3 DESC, 1, 2
"""

SEQUENCE = """
SELECT seqcache, seqincrement, seqmin, seqcycle FROM pg_sequence
WHERE seqrelid = pg_get_serial_sequence('eventlogs_event', 'position')::regclass
"""


def _is_policy(value: Any) -> bool:
    try:
        policy_from(value)
    except (ImportError, TypeError):
        return False
    return True


def _is_refresher(value: Any) -> bool:
    try:
        refresher_for(value)
    except (ImportError, TypeError, AttributeError, ImproperlyConfigured):
        return False
    return True


VALID: dict[str, tuple[Callable[[Any], bool], str]] = {
    "CACHE": (
        lambda value: value is None or isinstance(value, str),
        "an alias in CACHES, or None",
    ),
    "CACHE_TIMEOUT": (
        lambda value: (
            value is None
            or (isinstance(value, int | float) and type(value) is not bool and value > 0)
        ),
        "a positive number of seconds, or None",
    ),
    "CACHING_POLICY": (
        _is_policy,
        "a caching policy, the class of one, or the dotted path to either",
    ),
    "REFRESHER": (
        _is_refresher,
        "the dotted path to a refresher whose packages are installed",
    ),
    "REFRESH_ON_APPEND": (lambda value: isinstance(value, bool), "True or False"),
    "MAX_EVENT_BYTES": (
        lambda value: type(value) is int and 0 < value <= 2**28,
        "an int from 1 to 268,435,456 (256 MiB: what jsonb can take)",
    ),
    "IDEMPOTENCY_KEY_RETENTION": (
        lambda value: value is None or (isinstance(value, timedelta) and value > timedelta()),
        "a positive datetime.timedelta, or None",
    ),
    "PREPARED_STATEMENTS": (lambda value: isinstance(value, bool), "True or False"),
    "PAGE_SIZE": (
        lambda value: type(value) is int and 0 < value <= MAX_PAGE_SIZE,
        f"an int from 1 to {MAX_PAGE_SIZE:,}",
    ),
    "HEALTH": (
        lambda value: isinstance(value, dict),
        f"a dict with any of: {', '.join(HEALTH)}",
    ),
}


@register()
def check_settings(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check the EVENTLOGS setting and USE_TZ."""
    found: list[CheckMessage] = []
    ours = getattr(settings, "EVENTLOGS", {})
    if not isinstance(ours, dict):
        found.append(
            Error(
                "EVENTLOGS is not a dict.",
                hint=f"Set EVENTLOGS = {{…}} with any of: {', '.join(DEFAULTS)}.",
                id="eventlogs.E001",
            )
        )
        ours = {}
    for name, value in ours.items():
        if name not in VALID:
            found.append(
                Warning(
                    f"EVENTLOGS[{name!r}] is not a setting of eventlogs.",
                    hint=f"Remove it, or use one of: {', '.join(DEFAULTS)}.",
                    id="eventlogs.W002",
                )
            )
            continue
        valid, wanted = VALID[name]
        if not valid(value):
            found.append(
                Error(
                    f"EVENTLOGS[{name!r}] is {short(value)}. It must be {wanted}.",
                    hint="Set another value, or leave it out: "
                    f"the default is {short(DEFAULTS[name])}.",
                    id="eventlogs.E001",
                )
            )
    if isinstance(limits := ours.get("HEALTH", {}), dict):
        found += _check_limits(limits)
    if not settings.USE_TZ:
        found.append(
            Error(
                "USE_TZ is False, and events are recorded at instants.",
                hint="Set USE_TZ = True.",
                id="eventlogs.E005",
            )
        )
    return found


def _check_limits(limits: dict[Any, Any]) -> Iterable[CheckMessage]:
    for name, value in limits.items():
        if name not in HEALTH:
            yield Warning(
                f"EVENTLOGS['HEALTH'][{name!r}] is not a limit that eventlogs knows.",
                hint=f"Remove it, or use one of: {', '.join(HEALTH)}.",
                id="eventlogs.W002",
            )
        elif isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            unit = "logs" if name == "MAX_PARKED" else "seconds"
            yield Error(
                f"EVENTLOGS['HEALTH'][{name!r}] is {value!r}. It must be a number of {unit}, from "
                f"0 on.",
                hint=f"Set it to {HEALTH[name]}, the default, or leave it out.",
                id="eventlogs.E001",
            )


@register()
def check_sqlite_transactions(**kwargs: Any) -> Iterable[CheckMessage]:
    """
    Check that SQLite takes its write lock when a transaction begins.

    With the default (DEFERRED), a transaction that reads and then writes fails with "database
    is locked" at once where another writes (https://sqlite.org/lang_transaction.html).
    """
    for alias in connections:
        connection = connections[alias]
        if connection.vendor != "sqlite" or not _holds_logs(alias):
            continue
        mode = str(connection.settings_dict["OPTIONS"].get("transaction_mode") or "DEFERRED")
        if mode.upper() not in ("IMMEDIATE", "EXCLUSIVE"):
            yield Error(
                f"DATABASES[{alias!r}] is SQLite with {mode.upper()} transactions: appends "
                f"that race would fail with 'database is locked'.",
                hint=f'Set DATABASES[{alias!r}]["OPTIONS"] = {{"transaction_mode": "IMMEDIATE"}}.',
                id="eventlogs.E004",
            )


@register()
def check_events(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that event names, versions, upcasters and fields fit together."""
    for problem in registry.problems():
        yield Error(problem.rstrip("."), id="eventlogs.E006")
    for event_type in registry:
        try:
            codec_for(event_type)
        except RegistrationError as error:
            yield Error(str(error), id="eventlogs.E007")


@register(Tags.database)
def check_append_only_triggers(
    *,
    app_configs: Sequence[AppConfig] | None = None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> Iterable[CheckMessage]:
    """Check that PostgreSQL refuses to change events; asked for by ``check --database``."""
    for alias in databases or ():
        connection = connections[alias]
        if connection.vendor != "postgresql" or not _holds_logs(alias):
            continue
        with connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('eventlogs_event')")
            if cursor.fetchone() == (None,):
                continue  # not migrated yet
            wanted = [REFUSE_CHANGE]
            if not is_test_database(connection):
                wanted.append(REFUSE_TRUNCATE)
            cursor.execute(MISSING_TRIGGERS, [wanted])
            missing = cursor.fetchall()
        of_table = [name for name, _, is_table in missing if is_table]
        if of_table:
            yield Warning(
                f"In the database {alias!r} nothing refuses changes of events: the trigger "
                f"{' and '.join(of_table)} is missing or not ENABLE ALWAYS.",
                hint=f"Run: {again(alias)}.",
                id="eventlogs.W008",
            )
        of_partitions = [(name, table) for name, table, is_table in missing if not is_table]
        if of_partitions:
            name, table = of_partitions[0]
            others = len(of_partitions) - 1
            yield Warning(
                f"In the database {alias!r} a partition of events can be changed: the trigger "
                f"{name} of {table} is missing or not ENABLE ALWAYS"
                + (f", and {others} more like it." if others else "."),
                hint="Create the triggers of each partition as docs/storage.md, Partitions, does.",
                id="eventlogs.W008",
            )


@register(Tags.caches)
def check_reduction_cache(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that reductions have a cache, and that it keeps them as they are."""
    alias = conf.cache()
    if not isinstance(alias, str):
        return  # none is wanted, or E001 says what is wrong
    if alias not in settings.CACHES:
        yield Error(
            f"EVENTLOGS['CACHE'] names {alias!r}, which is not in CACHES.",
            hint=f"Add CACHES[{alias!r}], or use one of: {', '.join(settings.CACHES)}.",
            id="eventlogs.E003",
        )
        return
    backend = str(settings.CACHES[alias].get("BACKEND"))
    try:
        cache = caches[alias]
    except NO_BACKEND:
        return  # Django's own error, when the cache is used
    if not is_safe(cache):
        yield Error(
            f"CACHES[{alias!r}] ({backend}) would pickle reductions: who can write to it could "
            f"run code here. They are not cached.",
            hint="Use Redis (django_redis.cache.RedisCache, or Django's own RedisCache), whose "
            'raw client is used; or set EVENTLOGS["CACHE"] = None.',
            id="eventlogs.E009",
        )
    elif is_raw_redis(cache):
        options = settings.CACHES[alias].get("OPTIONS") or {}
        names = {str(name).lower() for name in options}
        names |= {str(name).lower() for name in options.get("CONNECTION_POOL_KWARGS") or ()}
        if not {"socket_timeout", "socket_connect_timeout"} <= names:
            yield Warning(
                f"CACHES[{alias!r}] has no time-outs: if Redis hangs, so does who reduces a log.",
                hint="Set SOCKET_TIMEOUT and SOCKET_CONNECT_TIMEOUT in "
                f'CACHES[{alias!r}]["OPTIONS"] '
                "(with Django's own RedisCache: socket_timeout, socket_connect_timeout).",
                id="eventlogs.W021",
            )


@register(Tags.caches, deploy=True)
def check_processes(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that processes share the cache; asked for by ``check --deploy``."""
    alias = conf.cache()
    if isinstance(alias, str) and alias in settings.CACHES and _is_local(alias):
        yield Warning(
            f"Reductions are cached in CACHES[{alias!r}], the memory of one process: each "
            f"process replays every log for itself.",
            hint='Name an alias of Redis in EVENTLOGS["CACHE"]. Answers are right either way.',
            id="eventlogs.W010",
        )


@register(Tags.caches)
def check_refresher(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that a worker's refreshes are seen here."""
    alias = conf.cache()
    if not (
        isinstance(alias, str) and alias in settings.CACHES and _is_refresher(conf.refresher())
    ):
        return
    if isinstance(refresher_for(), MessageRefresher) and _is_local(alias):
        yield Warning(
            f"{conf.refresher()} lets workers refresh reductions, but CACHES[{alias!r}] is the "
            f"memory of one process: what a worker writes is not seen here.",
            hint='Name an alias of Redis in EVENTLOGS["CACHE"], or use '
            "eventlogs.refreshers.ThreadRefresher.",
            id="eventlogs.W020",
        )


@register()
def check_aggregates(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that reductions can be cached at all."""
    if conf.cache() is None:
        return
    for aggregate in aggregates:
        reason = why_not(aggregate)
        if reason is not None:
            yield Warning(
                f"Reductions of {aggregate.__module__}.{aggregate.__qualname__} cannot be cached: "
                f"{reason}. Its logs are replayed each time.",
                hint="Put @dataclass above it, and declare all that it keeps as fields.",
                id="eventlogs.W022",
            )
        else:
            yield from _check_code(aggregate)


def _check_code(aggregate: type[Aggregate]) -> Iterable[CheckMessage]:
    """Check that it is known which code makes an aggregate's reductions."""
    name = f"{aggregate.__module__}.{aggregate.__qualname__}"
    if (why := why_unknown(aggregate)) is not None:
        yield Warning(
            f"Reductions of {name} are not cached, because their code cannot be known: {why}. Its "
            f"logs are replayed each time.",
            hint="What can be done is in docs/caching.md, What is not known.",
            id="eventlogs.W023",
        )
        return
    named = {event_type for each in aggregates for event_type in each.event_types}
    for event_type in registry:
        prefix = event_type.name.partition(".")[0]
        if event_type in named or prefix != aggregate.log_type:
            continue
        if not covers(aggregate, event_type.name):
            cls = event_type.cls
            yield Warning(
                f"Reductions of logs of {name} that hold {event_type.name!r} are not cached: "
                f"{cls.__module__}.{cls.__qualname__} or an upcaster of it is in a module that "
                f"the aggregate's modules do not import.",
                hint=f"Import {cls.__module__}, and the modules of its upcasters, in "
                f"{aggregate.__module__}.",
                id="eventlogs.W023",
            )


def _is_local(alias: str) -> bool:
    try:
        return isinstance(caches[alias], LocMemCache)
    except NO_BACKEND:
        return False


@register(Tags.database)
def check_feed(
    *,
    app_configs: Sequence[AppConfig] | None = None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> Iterable[CheckMessage]:
    """Check that PostgreSQL fences the feed; asked for by ``check --database``."""
    for alias in databases or ():
        connection = connections[alias]
        if connection.vendor != "postgresql" or not _holds_logs(alias):
            continue
        with connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('eventlogs_event')")
            if cursor.fetchone() == (None,):
                continue  # not migrated yet
            cursor.execute(SEQUENCE)
            facts = cursor.fetchone()
        refusals = feed_source_for(alias).refusals()
        if "fence" in refusals:
            yield Warning(
                f"In the database {alias!r} readers of the feed could skip events, so they are "
                f"refused: the trigger eventlogs_event_fence is missing or not ENABLE ALWAYS.",
                hint=f"Run: {again(alias)}. What was read meanwhile from a feed "
                "without a fence may lack events: rebuild it.",
                id="eventlogs.W011",
            )
        if "sequence" in refusals:
            how = "is missing"
            if facts is not None:
                how = "has CACHE {}, INCREMENT {}, MINVALUE {}{}".format(
                    *facts[:3], " and CYCLE" if facts[3] else ""
                )
            yield Warning(
                f"In the database {alias!r} the sequence of positions {how}, so readers of the "
                f"feed could skip events and are refused.",
                hint="Run: ALTER TABLE eventlogs_event ALTER position SET CACHE 1 SET INCREMENT 1 "
                "SET MINVALUE 1 SET NO CYCLE; then restart everything that is connected: "
                "connections use up the block that they have. Look that the next position is above "
                "all that were given out.",
                id="eventlogs.W012",
            )
        if "distributed" in refusals:
            yield Warning(
                f"In the database {alias!r} events are on several servers, so readers of the feed "
                f"are refused: no server sees the locks and positions of all.",
                hint="Keep the tables of eventlogs on one server (with Citus: do not distribute "
                "them), or use no projections and no feed.",
                id="eventlogs.W013",
            )
        if "subscriber" in refusals:
            yield Warning(
                f"In the database {alias!r} a subscription of logical replication writes the "
                f"events, so readers of the feed are refused: it commits them in another order "
                f"than that of their positions.",
                hint="Read the feed from the publisher. Once this database takes its place, drop "
                "the subscription and set the sequence past the last position.",
                id="eventlogs.W014",
            )


@register()
def check_projections(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that projections can work as they are written."""
    for name, each in sorted(projections.items()):
        using = router.db_for_write(Event)
        if connections[using].vendor not in FEEDS and each.mode != each.INLINE:
            yield Error(
                f"Projection {name!r} reads the feed of DATABASES[{using!r}], which has none.",
                hint="Keep the logs in PostgreSQL or SQLite: only there is it known which events "
                "are settled. A projection with mode = Projection.INLINE needs no feed.",
                id="eventlogs.E033",
            )
        if not issubclass(each, RowProjection):
            continue
        model = each.model
        if router.db_for_write(model) != using:
            yield Error(
                f"The rows of projection {name!r} are in DATABASES"
                f"[{router.db_for_write(model)!r}], the events in {using!r}: they could not be "
                f"committed together.",
                hint=f"Route {model._meta.label} to {using!r}.",
                id="eventlogs.E032",
            )
        if not each.has_shared_rows() and not isinstance(model._meta.pk, LogIdField):
            yield Error(
                f"The primary key of {model._meta.label} is no LogIdField, so projection {name!r} "
                f"cannot find the row of a log.",
                hint="Declare log_id = LogIdField(primary_key=True), or a key() of the projection.",
                id="eventlogs.E031",
            )


@register()
def check_read_models(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that each read model has a table and rows of its own, the same in a rebuild."""
    owners: dict[str, str] = {}
    for name, each in sorted(projections.items()):
        if not issubclass(each, RowProjection):
            continue
        model = each.model
        tables = {parent._meta.db_table for parent in model._meta.all_parents}
        tables = {*tables, model._meta.db_table}
        for table in sorted(tables & owners.keys()):
            yield Error(
                f"Projections {owners[table]!r} and {name!r} both write the table {table!r}: each "
                f"would overwrite the rows of the other, and a rebuild of one would empty the "
                f"columns of the other.",
                hint="Give each projection a model of its own, or handle all events in one "
                "projection. A proxy has the table of its model.",
                id="eventlogs.E038",
            )
        owners |= dict.fromkeys(tables - owners.keys(), name)
        if len(tables) > 1:
            yield Error(
                f"{model._meta.label}, the read model of projection {name!r}, inherits from a "
                f"model with a table of its own: rows of several tables cannot be written at once.",
                hint="Let it inherit from an abstract model.",
                id="eventlogs.E039",
            )
        for field in model._meta.concrete_fields:
            if is_unsteady(field):
                yield Error(
                    f"The db_default of {model._meta.label}.{field.name} may be another value "
                    f"each time, and projection {name!r} makes its rows again in a rebuild.",
                    hint="Set the field in a handler, e.g. from record.recorded_at. For the time "
                    "at which a row was written, use auto_now_add=True, which handlers do not see.",
                    id="eventlogs.E037",
                )


@register(Tags.database)
def check_rebuilds(
    *,
    app_configs: Sequence[AppConfig] | None = None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> Iterable[CheckMessage]:
    """Check that rows were made by the code of today; asked for by ``check --database``."""
    if not projections or router.db_for_write(Event) not in (databases or ()):
        return
    using = router.db_for_write(Event)
    with connections[using].cursor() as cursor:
        tables = connections[using].introspection.table_names(cursor)
    if ProjectionState._meta.db_table not in tables:
        return  # not migrated yet
    for state in ProjectionState.objects.using(using).order_by("name"):
        each = projections.get(state.name)
        if each is None or not issubclass(each, RowProjection) or state.version > each.version:
            continue
        if each.needs_rebuild(state):
            how = "" if state.mode == each.mode else f", kept {state.mode}"
            yield Warning(
                f"The rows of projection {state.name!r} were made by version {state.version} of "
                f"it{how}; the code is of version {each.version}.",
                hint=f"Run: manage.py eventlogs rebuild {state.name}. "
                "The old rows serve meanwhile.",
                id="eventlogs.W030",
            )


@register(Tags.database)
def check_further_databases(
    *,
    app_configs: Sequence[AppConfig] | None = None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> Iterable[CheckMessage]:
    """Check that read models follow logs in each database; asked for by ``check --database``."""
    for using in databases or ():
        if using == router.db_for_write(Event) or not _holds_logs(using):
            continue
        with connections[using].cursor() as cursor:
            tables = connections[using].introspection.table_names(cursor)
        if not {EventLog._meta.db_table, ProjectionState._meta.db_table} <= set(tables):
            continue  # not migrated yet
        known = set(ProjectionState.objects.using(using).values_list("name", flat=True))
        for name, each in sorted(projections.items()):
            if not issubclass(each, RowProjection):
                continue
            model = each.model
            is_there = model._meta.db_table in tables and may_have_rows(model, using)
            logs = EventLog.objects.using(using)
            if (log_types := each.log_types_read()) is not None:
                logs = logs.filter(log_type__in=log_types)
            if (is_there and name in known) or not logs.exists():
                continue
            run = f"manage.py eventlogs project {name} --database {using}"
            if is_there:
                yield Warning(
                    f"The database {using!r} has logs that projection {name!r} reads, and it has "
                    f"never run there.",
                    hint=f"Run: {run}",
                    id="eventlogs.W036",
                )
            else:
                yield Warning(
                    f"The database {using!r} has logs that projection {name!r} reads, and no "
                    f"table for its rows: they are not kept there.",
                    hint=f"Run: manage.py migrate --database {using} (a router must allow "
                    f"{model._meta.label} there), then: {run}",
                    id="eventlogs.W036",
                )


def again(alias: str) -> str:
    """Return the command that creates the triggers of a database again."""
    return f"manage.py eventlogs triggers --database {alias}"


def _holds_logs(alias: str) -> bool:
    return bool(router.allow_migrate(alias, "eventlogs", model_name="event"))
