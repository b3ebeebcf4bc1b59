"""
The causation tree of an event: its causes, its effects, and the other events of its flow.

Causes are found by their ids, with two queries each that use unique indexes. No index of eventlogs
leads from an event to its effects. They belong to its flow, the events with the same correlation
id, which are searched window by window from the event on, in both directions. The search has a
time limit: a page takes about a second, however many events there are. It shows which events were
searched, and links to a search of the rest.

A project with many events can create the index of docs/admin.md. Then the flow is read through the
index, without windows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from django.db import connections
from django.db.models import Q
from django.db.models.fields.json import KeyTextTransform, KeyTransform

from eventlogs.admin import causation
from eventlogs.admin.filters import Filters
from eventlogs.admin.sort_orders import Key
from eventlogs.admin.windowed_search import SearchStart
from eventlogs.events.metadata import CAUSATION, CORRELATION, REQUEST, id_in
from eventlogs.ids import LogId
from eventlogs.models import Event

EVENTS: Final = 200  # of a page, besides the causes
CAUSES: Final = 20  # that are followed upwards
LEVELS: Final = 10  # that are shown inside one another

INDEX: Final = "eventlogs_event_by_correlation"
# Whether the index exists, and can be used: indisvalid is false until it is built.
HAS_INDEX: Final = (
    "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND indisvalid)"
)


@dataclass(slots=True)
class Node:
    """An event in a tree, and the effects that are shown below it, by position."""

    event: Event
    effects: list[Node] = field(default_factory=list)
    level: int = 1
    cause: str = ""  # the id of its cause, if that is not the node above it

    @property
    def log_id(self) -> LogId:
        """The id of the event's log."""
        return LogId.stored(self.event.log_type, self.event.log_id)

    @property
    def record_id(self) -> str:
        """The event's ``record.id``."""
        return f"{self.log_id}:{self.event.index}"


@dataclass(slots=True)
class Request:
    """The events of a request ("": of no request) whose causes are not in the tree."""

    request_id: str
    nodes: list[Node] = field(default_factory=list)


def causes_of(event: Event, using: str) -> list[Event]:
    """Return the cause of an event, the cause of that cause, and so on: at most CAUSES events."""
    found: list[Event] = []
    seen = {event.pk}
    while len(found) < CAUSES:
        cause = causation.find_event(str(id_in(event.metadata, CAUSATION)), using)
        if cause is None or cause.pk in seen:
            break
        seen.add(cause.pk)
        found.append(cause)
        event = cause
    return found


def flow_of(event: Event, causes: list[Event]) -> str:
    """Return the id of an event's flow: its correlation id, or the id of its first cause."""
    for each in (event, *causes):
        if (found := id_in(each.metadata, CORRELATION)) is not None:
            return str(found)
    return Node([event, *causes][-1]).record_id


def flow(event: Event, flow_id: str, using: str) -> Filters:
    """Return the filter that finds the events of a flow, beginning at one of them."""
    every = Event.objects.using(using)
    start = SearchStart(around=Key(event.pk))
    if has_index(using):
        rows = every.alias(flow=KeyTextTransform(CORRELATION, "metadata")).filter(flow=flow_id)
        return Filters({}, rows, start=start)
    wanted = Q(flow=flow_id) | Q(cause=Node(event).record_id) | Q(pk=event.pk)
    if flow_id.isdecimal() and len(flow_id) < 16:
        wanted |= Q(flow=int(flow_id))
    found = every.alias(
        flow=KeyTransform(CORRELATION, "metadata"), cause=KeyTransform(CAUSATION, "metadata")
    ).filter(wanted)
    return Filters({}, every, found, start=start)


def has_index(using: str) -> bool:
    """Return whether the project has created the index of correlation ids."""
    connection = connections[using]
    if connection.vendor != "postgresql":
        return False
    with connection.cursor() as cursor:
        cursor.execute(HAS_INDEX, [INDEX])
        return bool(cursor.fetchone()[0])


def tree(events: Iterable[Event]) -> list[Request]:
    """
    Return events as trees: effects below their causes, all other events below their requests.

    Metadata are not checked, so events can name each other as causes: each is shown once. Effects
    below level LEVELS are shown on that level.
    """
    nodes = sorted(
        (Node(each) for each in {each.pk: each for each in events}.values()), key=_position
    )
    by_id = {node.record_id: node for node in nodes}
    causes: dict[str, Node] = {}
    effects: dict[str, list[Node]] = {}
    tops = []
    for node in nodes:
        node.cause = str(id_in(node.event.metadata, CAUSATION) or "")
        cause = by_id.get(node.cause)
        if cause is None or _is_caused_by(cause, node, causes):
            tops.append(node)
        else:
            causes[node.record_id] = cause
            effects.setdefault(cause.record_id, []).append(node)
    requests: dict[str, Request] = {}
    for node in tops:
        request_id = str(id_in(node.event.metadata, REQUEST) or "")
        requests.setdefault(request_id, Request(request_id)).nodes.append(node)
        _arrange(node, effects)
    return list(requests.values())


def _is_caused_by(node: Node | None, other: Node, causes: dict[str, Node]) -> bool:
    """Return whether ``other`` is a node, or a direct or indirect cause of it."""
    while node is not None:
        if node is other:
            return True
        node = causes.get(node.record_id)
    return False


def _arrange(top: Node, effects: dict[str, list[Node]]) -> None:
    """Put effects below their causes, no deeper than LEVELS."""
    waiting = [(top, top)]  # nodes, and those above them
    while waiting:
        node, above = waiting.pop()
        is_deepest = node.level == LEVELS
        place = above if is_deepest else node
        for effect in effects.get(node.record_id, ()):
            effect.level = node.level if is_deepest else node.level + 1
            effect.cause = effect.cause if is_deepest else ""
            place.effects.append(effect)
            waiting.append((effect, place))
        if is_deepest:
            place.effects.sort(key=_position)


def _position(node: Node) -> int:
    position: int = node.event.pk
    return position
