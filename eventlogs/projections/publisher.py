"""
Publishers: reactors that hand whole batches of events to a broker, a queue or another system.

A publisher is declared, run and looked after as a reactor; see ``publications.py`` for what it
promises. A *sink* sends the records to one kind of broker. ``eventlogs.contrib`` has the ready
ones, each in a module of its own that imports the broker's client.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from eventlogs.events.registry import registry
from eventlogs.exceptions import RegistrationError
from eventlogs.projections.kinds import Reactor
from eventlogs.values import EventRecord

Encode = Callable[[EventRecord], dict[str, Any]]


class BaseSink(ABC):
    """
    Where a publisher sends records to, ordered within each log.

    An implementation may be called by several threads at once, and connects when it is first used.
    ``timeout`` is how many seconds it may take for a batch.
    """

    timeout: float = 10.0

    @abstractmethod
    def send(self, records: Sequence[EventRecord], encode: Encode) -> None:
        """
        Send records, and return when the other side has stored all of them.

        ``encode`` returns the CloudEvent of a record. No record may become visible there before
        the earlier ones of its log. Return, or raise, within ``timeout`` seconds.

        Raise Unpublishable for the records that can never be sent, and any other error where the
        other side does not take them now; all of them are sent again then.
        """

    def close(self) -> None:
        """Close the connection, if there is one; the next call of ``send`` opens another."""
        return None


class Publisher(Reactor):
    """
    Publishes events: a batch, then its checkpoint; at least once, in the order of each log.

    Set ``sink``, or write ``publish(self, records)``. ``log_types`` and ``events`` say what is
    published: the types of logs and the classes of events, by default all. ``batch_size`` is
    the most that is published at once, ``timeout`` how many seconds that may take.

    An event may be published again, after a crash or an error; the receiver knows it by its id,
    ``record.id``, which is that of its CloudEvent. The first times of the events of a log are in
    the order of the log.

    **Personal data stay here**: records have the stand-ins of ``Personal`` values, whether or
    not their subject is forgotten. What is published cannot be forgotten any more. Set
    ``with_personal_data = True`` to publish them all the same.

    ``source`` is the source of the CloudEvents, a URI, by default ``/`` and the log type.

    ``reads_from`` are replicas to read the events on, such as ``{"default": "replica"}``: aliases
    by those of their primaries. Checkpoints stay in the primary. While a replica does not answer,
    or is none, its primary is read.
    """

    publishes = True
    with_personal_data = False
    batch_size = 500
    timeout = 20.0
    events: ClassVar[Iterable[type] | None] = None
    sink: ClassVar[BaseSink | None] = None
    source: ClassVar[str | None] = None

    def publish(self, records: Sequence[EventRecord]) -> None:
        """
        Publish a batch, and return when it is stored on the other side; by default by ``sink``.

        Raise Unpublishable for the records that can never be published, which holds their
        logs. Any other error is taken for one of the other side: the same events come again, later
        and later, and nothing is held or parked.
        """
        assert self.sink is not None  # see check_declaration
        self.sink.send(records, self.cloudevent)

    def cloudevent(self, record: EventRecord) -> dict[str, Any]:
        """Return the CloudEvent of a record; override it to leave out, or to add, attributes."""
        return record.as_cloudevent(source=self.source)

    def apply(self, records: Sequence[EventRecord], using: str) -> None:
        self.publish(records)

    @classmethod
    def event_types_read(cls) -> list[str] | None:
        return None if cls.events is None else registry.names_of(cls.events)

    @classmethod
    def check_declaration(cls) -> None:
        super().check_declaration()
        name = cls.__qualname__
        if cls.event_handlers:
            raise RegistrationError(
                f"{name} is a Publisher, which has no @handles. Name the classes in events = […], "
                f"and publish them in publish(self, records)."
            )
        if cls.sink is None and cls.publish is Publisher.publish:
            raise RegistrationError(
                f"{name} publishes nowhere. Set sink = …, or write publish(self, records)."
            )
        if cls.sink is not None and not isinstance(cls.sink, BaseSink):
            raise RegistrationError(
                f"{name}: sink is {cls.sink!r}. It must be an instance of a sink, such as "
                f"JetStreamSink('nats://…')."
            )
        if cls.sink is not None and cls.sink.timeout >= cls.timeout:
            raise RegistrationError(
                f"{name}: the sink may take {cls.sink.timeout:g} seconds for a batch, and the "
                f"publisher's timeout is {cls.timeout:g}. Raise timeout, or lower that of the sink."
            )
        if not isinstance(cls.reads_from, Mapping):
            raise RegistrationError(
                f"{name}: reads_from is {cls.reads_from!r}. It must be a dict of aliases, such as "
                f"{{'default': 'replica'}}."
            )
        for each in cls.events or ():
            if not isinstance(each, type) or registry.by_class(each) is None:
                raise RegistrationError(
                    f"{name} publishes {each!r}, which is no event: put @event('…') above its "
                    f"@dataclass."
                )
