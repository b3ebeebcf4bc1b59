"""The health of a database: connection, tables, triggers, feed, types of the newest events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final

from django.core.checks import CheckMessage
from django.db import DatabaseError, InterfaceError
from django.db.models import Max

from eventlogs.aggregates import aggregates
from eventlogs.checks import mysql, postgresql
from eventlogs.events.registry import registry
from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed.reader import HEARTBEAT, Feed
from eventlogs.feed.sources import Blocked, FeedHolder, feed_source_for, has_feed
from eventlogs.models import Checkpoint, Event, LogMove
from eventlogs.operations.health.findings import ACT, INFO, Finding
from eventlogs.operations.health.look import Look, Unknown, ask
from eventlogs.operations.health.partitions import look_at_partitioning
from eventlogs.utils.words import counted, seconds

NEWEST: Final = 2_000  # events whose types are checked
MOVING: Final = timedelta(minutes=10)  # that a move may take
TEXT: Final = 300  # characters of a database's error message

# The codes and levels here of system checks.
CHECKS: Final = {
    "eventlogs.W008": ("trigger", ACT),
    "eventlogs.W011": ("trigger", ACT),
    "eventlogs.W012": ("sequence", ACT),
    "eventlogs.W013": ("feed", INFO),  # without projections, nobody reads the feed
    "eventlogs.W014": ("feed", INFO),
    "eventlogs.W045": ("database", INFO),
    "eventlogs.W046": ("database", INFO),
}

SETVAL: Final = (
    "SELECT setval(pg_get_serial_sequence('eventlogs_event', 'position'), "
    "(SELECT max(position) FROM eventlogs_event));"
)


def look_at_database(look: Look) -> Iterator[Finding]:
    """Yield the findings about a database; only one if it does not answer."""
    unreachable = _reach(look)
    if unreachable is not None:
        yield unreachable
        return
    look.is_there = True
    for what, part in (
        ("The triggers and tables", _checks),
        ("The feed", _feed),
        ("The partitioning of events", look_at_partitioning),
        ("The types of the newest events", _newest_types),
        ("The moves of logs", _moves),
    ):
        yield from ask(look, what, part)


def _reach(look: Look) -> Finding | None:
    """Return the finding that the database cannot be read, or None."""
    connection = look.connection
    try:
        try:
            tables = connection.introspection.table_names()
        except (DatabaseError, InterfaceError):
            # The server may have been restarted since the connection was last used.
            if connection.in_atomic_block:
                raise
            connection.close()
            tables = connection.introspection.table_names()
    except Exception as error:
        # No statement of ours with payload was running: this is the server's own text.
        why = " ".join(str(error).split())[:TEXT]
        with suppress(Exception):
            if not connection.in_atomic_block:
                connection.close()
        return look.finding(
            "database",
            ACT,
            f"The database {look.using!r} does not answer: {type(error).__name__}: {why}",
            "Database administrator: start the database, or repair the network or the credentials "
            f"in DATABASES[{look.using!r}].",
        )
    if Event._meta.db_table not in tables:
        return look.finding(
            "tables",
            ACT,
            f"The database {look.using!r} has no tables of eventlogs.",
            "Deployer: migrate the database:",
            f"manage.py migrate --database {look.using}",
        )
    return None


# Triggers and other findings of system checks


def _checks(look: Look) -> Iterator[Finding]:
    databases = [look.using]
    found: list[CheckMessage] = [
        *postgresql.check_append_only_triggers(databases=databases),
        *postgresql.check_feed(databases=databases),
        *mysql.check_mysql(databases=databases),
    ]
    for message in found:
        code, level = CHECKS.get(str(message.id), ("database", ACT))
        if code == "feed" and look.projections():
            level = ACT
        yield look.finding(code, level, str(message.msg), *_what_to_do(message, look.using))


def _what_to_do(message: CheckMessage, alias: str) -> tuple[str, str]:
    """Return the action of a check's hint, and its command by itself, to be pasted."""
    hint = str(message.hint)
    command = postgresql.create_triggers(alias)
    if f"Run: {command}." in hint:
        more = hint.replace(f"Run: {command}.", "").strip()
        return f"Deployer: create it again{f'. {more}' if more else ':'}", command
    return f"Database administrator: {hint}", ""


# Moves of logs to another database


def _moves(look: Look) -> Iterator[Finding]:
    moves = LogMove.objects.using(look.using).filter(state=LogMove.LEAVING)
    stopped = moves.filter(begun_at__lt=look.now - MOVING).order_by("begun_at")
    if (first := stopped.first()) is None:
        return
    count = stopped.count()
    logs = counted(count, "log takes", "logs take")
    yield look.finding(
        "move-stopped",
        ACT,
        f"{logs} no events: a move to another database was begun and not finished, first of all "
        f"that of {first.log_id} to {first.other!r}.",
        "Operator: finish the move, or end it with --abandon:",
        f"manage.py eventlogs move {first.log_id} --from {look.using} --to {first.other}",
        subject=str(first.log_id),
        since=first.begun_at,
        logs=count,
    )


# The feed


def _feed(look: Look) -> Iterator[Finding]:
    look.newest = Event.objects.using(look.using).aggregate(last=Max("position"))["last"] or 0
    look.figures["newest_position"] = look.newest
    if not has_feed(look.using):
        yield from _without_feed(look)
        return
    source = feed_source_for(look.using)
    try:
        mark = source.watermark()
        look.settled = Feed(using=look.using).settled()
    except FeedUnavailable as refusal:
        yield from _refused(look, refusal)
        return
    look.figures["settled_position"] = look.settled
    yield from _beyond(look, mark.assigned)
    if mark.is_replica:
        return  # only its primary knows what holds the feed back
    holders = source.holding_back()
    look.figures["holding_back"] = len(holders)
    yield from _held(look, holders)


def _without_feed(look: Look) -> Iterator[Finding]:
    names = [name for name, each in look.projections().items() if each.mode != each.INLINE]
    if names:
        yield look.finding(
            "feed",
            INFO,
            f"The database {look.using!r} has no feed, so nothing runs {', '.join(names)}.",
            "Developer: make them inline, or keep logs in PostgreSQL (eventlogs.E033).",
        )


def _refused(look: Look, refusal: FeedUnavailable) -> Iterator[Finding]:
    if refusal.reason in ("fence", "sequence", "distributed", "subscriber"):
        return  # the finding of the system check says so
    if refusal.reason == "isolation":
        yield look.finding(
            "feed",
            INFO,
            "The end of the feed cannot be known inside of a REPEATABLE READ or SERIALIZABLE "
            "transaction.",
            "Developer: call health() outside of the transaction, or under READ COMMITTED.",
        )
        return
    is_replica = refusal.reason == "replica"
    yield look.finding(
        "permission" if refusal.reason == "permission" else "feed",
        INFO if is_replica else ACT,
        str(refusal),
        "Check the primary instead." if is_replica else "Table owner: grant the privileges:",
        "" if is_replica else look.command(f"grants {look.role}"),
    )


def _beyond(look: Look, given_out: int) -> Iterator[Finding]:
    """Yield sequences and checkpoints that do not fit the events, as after a restore."""
    newest = look.newest or 0
    if given_out < newest:
        yield look.finding(
            "sequence",
            ACT,
            f"The sequence of positions is at {given_out:,}, and events are stored up to "
            f"{newest:,}: appends will fail. A backup was restored without its sequences.",
            "Database administrator: set the sequence to the newest event:",
            SETVAL if look.is_postgresql else "",
            sequence=given_out,
            newest_position=newest,
        )
    ahead = (
        Checkpoint.objects.using(look.using)
        .filter(is_rebuild=False, position__gt=max(given_out, newest))
        .exclude(projection=HEARTBEAT)  # the next heartbeat corrects it
    )
    reached = ahead.order_by().values_list("projection").annotate(Max("position"))
    for name, position in sorted(reached):
        keeps_rows = hasattr(look.projections().get(name), "model")
        yield look.finding(
            "restored",
            ACT,
            f"The checkpoint of {name} is at position {position:,}, which was never assigned "
            f"here; the newest event is at {newest:,}. The database was restored to an earlier "
            "moment, or the events come from another one.",
            "Database administrator: rebuild the rows:"
            if keeps_rows
            else "Database administrator: decide which events the reactor must handle again. To "
            "continue after the newest one:",
            look.command(f"rebuild {name} --restart")
            if keeps_rows
            else f"UPDATE eventlogs_checkpoint SET position = {newest}, token = token + 1, "
            f"owner = '', leased_until = NULL WHERE projection = '{_quoted(name)}';",
            subject=name,
            position=position,
            newest_position=newest,
        )


def _quoted(name: str) -> str:
    return name.replace("'", "''")


def _held(look: Look, holders: Sequence[FeedHolder]) -> Iterator[Finding]:
    """
    Yield the transactions that make an event, or another session, wait for too long.

    The age of a transaction says little: one that is open for an hour may have appended a
    millisecond ago. An event behind it was appended after that, so its age is how long the
    transaction has held it back, at least. Other sessions wait to append to the same log: what
    they append is no event yet.
    """
    limit = look.limits["MAX_HELD"]
    named = min(limit, look.limits["MAX_LAG"])  # findings of a lag refer to it
    blocked = _blocked(look, holders, limit)
    for holder in holders:  # events wait longest behind the first one
        behind = Event.objects.using(look.using).filter(position__gt=holder.position)
        since = behind.order_by("position").values_list("recorded_at", flat=True).first()
        held = 0.0 if since is None else _past(look, since)
        look.is_held |= held > named
        waits = blocked.get((holder.pid, holder.prepared_as))
        waiting = 0.0 if waits is None else _past(look, waits.since)
        age = max(held, waiting) if holder.age is None else holder.age.total_seconds()
        if max(age, held, waiting) <= named:
            continue  # a running append
        harm = []
        if held > limit:
            harm.append(f"what was appended after it has waited for {seconds(held)}")
        if waits is not None and waiting > limit:
            wait = "waits" if waits.sessions == 1 else "wait"
            harm.append(
                f"{counted(waits.sessions, 'session')} {wait} for it to end, to append to the "
                f"same log or change the same row, for {seconds(waiting)}"
            )
        process: dict[str, Any] = {} if holder.pid is None else {"pid": holder.pid}
        yield look.finding(
            "feed-held",
            ACT if harm else INFO,
            f"{_name(holder)} has appended and is open for {seconds(age)}: it holds the feed "
            f"back at position {holder.position:,}"
            + (f", and {', and '.join(harm)}." if harm else ". Nothing has waited long for it."),
            *_release(holder),
            since=look.now - timedelta(seconds=max(held, waiting) if harm else age),
            held_seconds=round(held, 3),
            open_seconds=round(age, 3),
            position=holder.position,
            positions_waiting=max((look.newest or 0) - holder.position, 0),
            sessions_waiting=0 if waits is None else waits.sessions,
            **process,
        )


def _past(look: Look, since: datetime) -> float:
    return max((look.now - since).total_seconds(), 0.0)


def _blocked(
    look: Look, holders: Sequence[FeedHolder], limit: float
) -> dict[tuple[int | None, str | None], Blocked]:
    """Return the sessions that wait, if a transaction is open for long or for an unknown time."""
    if all(each.age is not None and each.age.total_seconds() <= limit for each in holders):
        return {}
    found = feed_source_for(look.using).blocked()
    return {(each.pid, each.prepared_as): each for each in found}


def _name(holder: FeedHolder) -> str:
    if holder.prepared_as is not None:
        by = f" of the user {holder.user}" if holder.user else ""
        return f"The prepared transaction {holder.prepared_as!r}{by}"
    details = [
        f"application {holder.application!r}" if holder.application else "",
        f"user {holder.user}" if holder.user else "",
        holder.state or "",
    ]
    known = ", ".join(filter(None, details))
    return f"A transaction of the server process {holder.pid}{f' ({known})' if known else ''}"


def _release(holder: FeedHolder) -> tuple[str, str]:
    """Return the action and the command that end a transaction."""
    if holder.prepared_as is not None:
        return (
            "Database administrator: commit it, or roll it back, which removes its events. It "
            "survives a restart of the server:",
            f"ROLLBACK PREPARED '{_quoted(holder.prepared_as)}';",
        )
    return (
        "Operator: let that process commit or roll back. To end it, which removes its events:",
        f"SELECT pg_terminate_backend({holder.pid});",
    )


# Event types without a class among the newest events


def _newest_types(look: Look) -> Iterable[Finding]:
    ours = {each.log_type for each in aggregates}
    newest = Event.objects.using(look.using).order_by("-position")
    rows = newest.values_list("type", "schema_version", "log_type", "recorded_at")
    for name, version, log_type, recorded_at in rows[:NEWEST]:
        if not is_known(name, version):
            found = look.unknown.setdefault((name, version), Unknown(recorded_at))
            found.since = min(found.since, recorded_at)
            found.events += 1
            found.is_ours |= log_type in ours
    return ()


def is_known(name: str, schema_version: int) -> bool:
    """Return whether this process can decode events of a type and version, or skips them."""
    kind = registry.by_name(name)
    return registry.is_retired(name) or (kind is not None and schema_version <= kind.version)


def unknown_types(look: Look) -> Iterator[Finding]:
    """
    Yield a finding for each event type, or version of one, that this release does not know.

    They are from the newest events, and from those that hold a log. Logs of a type that no
    aggregate here has may be another project's: nobody has to act on those.
    """
    for (name, version), found in sorted(look.unknown.items()):
        kind = registry.by_name(name)
        what = "the event type" if kind is None else f"version {version} of the event type"
        held_by = ", ".join(sorted(found.held_by))
        parts = [
            f"{counted(found.events, 'event')} of the newest {NEWEST:,}" if found.events else "",
            f"{counted(found.logs, 'log')} held in {held_by}" if found.logs else "",
        ]
        is_overdue = look.now - found.since > look.max_deploy
        yield look.finding(
            "unknown-type",
            ACT if found.is_ours and is_overdue else INFO,
            f"This release does not know {what} {name!r} ({'; '.join(filter(None, parts))}): logs "
            "that hold it cannot be reduced here.",
            _bring_out(kind is None) if found.is_ours else OTHERS,
            f'retired_event("{name}")' if found.is_ours and kind is None else "",
            subject=name,
            since=found.since,
            events=found.events,
            logs=found.logs,
            schema_version=version,
        )


OTHERS: Final = "No action needed if another project writes these logs: no aggregate here does."


def _bring_out(can_retire: bool) -> str:
    act = "Deployer: deploy the release that knows it to all processes."
    if can_retire:
        act += " Developer: if its class was deleted permanently, declare in an events module:"
    return act
