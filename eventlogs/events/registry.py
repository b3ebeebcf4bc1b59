"""
The registry of event classes: their stable names, versions and upcasters.

The store identifies the class of an event by a *name*, never by a class path, so classes may be
moved and renamed. A class that replaces an older name lists that name in ``aliases``; upcasters
convert data of an older ``version`` to the current one, one version at a time.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from eventlogs.conf import MAX_EVENT_TYPE_LENGTH
from eventlogs.exceptions import RegistrationError
from eventlogs.utils import loaded_modules
from eventlogs.utils.declared_types import DeclaredType, declared_types
from eventlogs.utils.names import dotted

E = TypeVar("E")
Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
U = TypeVar("U", bound=Upcaster)

EVENT_TYPE = re.compile(rf"[A-Za-z][A-Za-z0-9_.:-]{{0,{MAX_EVENT_TYPE_LENGTH - 1}}}\Z")


@dataclasses.dataclass(frozen=True, slots=True)
class EventType:
    """The registration of an event class by ``@event``."""

    cls: type
    name: str
    version: int
    aliases: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All names that the store may have for the type, the current one first."""
        return (self.name, *self.aliases)


class Registry:
    """
    The event types and upcasters of a process.

    Two classes may register one name while a project is being imported; a system check reports
    it. A class that is defined again (a reload, an interactive session) replaces the earlier one.
    """

    def __init__(self) -> None:
        self._by_class: dict[type, EventType] = {}
        self._by_name: dict[str, list[EventType]] = {}
        self._upcasters: dict[tuple[str, int], list[Upcaster]] = {}
        self._homes: dict[Upcaster, str] = {}
        self._redacted: dict[Upcaster, dict[str, Any]] = {}
        self._retired: dict[str, None] = {}  # in the order of their declaration
        self._changes: dict[str, object] = {}

    @property
    def stamp(self) -> object:
        """An object that is replaced with each change."""
        return self._changes.get("last")

    @property
    def revision(self) -> tuple[int, int]:
        """The numbers of classes and upcasters; one of them grows with each registration."""
        return len(self._by_class), len(self._homes)

    def add(self, event_type: EventType) -> None:
        """Register ``event_type`` under all of its names."""
        self._changes["last"] = object()
        loaded_modules.look()
        self._by_class[event_type.cls] = event_type
        declared_types[event_type.cls] = DeclaredType(event_type.name, event_type.version)
        for name in event_type.names:
            claims = self._by_name.setdefault(name, [])
            claims[:] = [claim for claim in claims if not _same_place(claim.cls, event_type.cls)]
            claims.append(event_type)

    def add_upcaster(
        self, name: str, from_version: int, upcast: Upcaster, *, home: str = ""
    ) -> None:
        """
        Register ``upcast`` for data that was stored as ``from_version`` of ``name``.

        ``home`` is the module that registers it. It differs from the function's own module where
        another function has made it, and its code contains the arguments of that call.
        """
        loaded_modules.look()
        self._homes[upcast] = home or upcast.__module__
        claims = self._upcasters.setdefault((name, from_version), [])
        claims[:] = [claim for claim in claims if not _same_place(claim, upcast)]
        claims.append(upcast)

    def retire(self, name: str) -> None:
        """Register a stored name as one that has no class any more."""
        self._changes["last"] = object()
        self._retired[name] = None

    def is_retired(self, name: str) -> bool:
        """Return whether a name is retired; a class that is registered for it takes precedence."""
        return name in self._retired and not self._by_name.get(name)

    def known_names(self) -> list[str]:
        """Return all stored names that have a class or are retired."""
        return sorted({name for name, claims in self._by_name.items() if claims} | {*self._retired})

    def by_class(self, cls: type) -> EventType | None:
        """Return the event type of a class, or None for one without ``@event``."""
        return self._by_class.get(cls)

    def by_name(self, name: str) -> EventType | None:
        """
        Return the event type of a stored name, or None.

        Raise RegistrationError if two classes have registered the name.
        """
        claims = self._by_name.get(name)
        if not claims:
            return None
        if len(claims) > 1:
            raise RegistrationError(_clash(name, claims))
        return claims[0]

    def names_of(self, types: Iterable[str | type]) -> list[str]:
        """
        Return all stored names, aliases included, of event types given by name or by class.

        A name without a class stands for itself. Raise TypeError for a class without ``@event``.
        """
        names: set[str] = set()
        for each in types:
            known = self.by_name(each) if isinstance(each, str) else self.by_class(each)
            if isinstance(each, str):
                names.add(each)
            elif known is None:
                raise TypeError(f"{each!r} is not an event class: put @event('…') above it.")
            names.update(known.names if known else ())
        return sorted(names)

    def upcaster(self, names: Iterable[str], from_version: int) -> Upcaster | None:
        """Return the upcaster for ``from_version`` of any of the names, or None."""
        for name in names:
            if claims := self._upcasters.get((name, from_version)):
                return claims[-1]
        return None

    def redact(self, upcast: Upcaster, redacted: Mapping[str, Any]) -> None:
        """Register what stands for erased values in the data that an upcaster takes."""
        self._redacted[upcast] = dict(redacted)

    def redacted(self, names: Iterable[str], from_version: int) -> Mapping[str, Any]:
        """Return what stands for erased values in data of a version, by their paths."""
        upcast = self.upcaster(names, from_version)
        return {} if upcast is None else self._redacted.get(upcast, {})

    def home_of(self, upcast: Upcaster) -> str:
        """Return the name of the module that registered an upcaster."""
        return self._homes[upcast]

    def __iter__(self) -> Iterator[EventType]:
        seen: set[int] = set()
        for claims in list(self._by_name.values()):
            for claim in claims:
                if id(claim) not in seen:
                    seen.add(id(claim))
                    yield claim

    def problems(self) -> Iterator[str]:
        """Yield a message for each contradiction between registrations."""
        for name, claims in self._by_name.items():
            if len(claims) > 1:
                yield _clash(name, claims)
            if claims and name in self._retired:
                yield (
                    f"{name!r} is retired, but {dotted(claims[0].cls)} is registered for it. "
                    f"Remove retired_event({name!r})."
                )
        for (name, from_version), upcasts in self._upcasters.items():
            if len(upcasts) > 1:
                yield (
                    f"Two upcasters take {name!r} from version {from_version}: "
                    f"{' and '.join(map(dotted, upcasts))}. Keep one."
                )
            for claim in self._by_name.get(name, ()):
                if from_version >= claim.version:
                    yield (
                        f"The upcaster {dotted(upcasts[-1])} takes {name!r} from version "
                        f"{from_version}, but {dotted(claim.cls)} is of version "
                        f"{claim.version}. Raise version= on the class."
                    )
        for event_type in self:
            for version in range(1, event_type.version):
                if self.upcaster(event_type.names, version) is None:
                    yield (
                        f"{dotted(event_type.cls)} is of version {event_type.version}, but no "
                        f"upcaster takes {event_type.name!r} from version {version}. Add "
                        f"@upcaster({event_type.name!r}, from_version={version})."
                    )


registry = Registry()


def event(
    name: str, *, version: int = 1, aliases: Iterable[str] = ()
) -> Callable[[type[E]], type[E]]:
    """
    Register a dataclass as an event type.

    ``name`` is its permanent name in the store: a letter, then letters, digits and ``_.:-``, at
    most 255 characters, by convention ``<log type>.<past participle>``. ``version`` counts the
    forms that its data has had, from 1. ``aliases`` are its earlier names.

    Raise RegistrationError for an invalid name or version, or a class that is not a dataclass
    (``@event`` stands above ``@dataclass``); then nothing is registered.
    """
    names = (name, *aliases)
    for each in names:
        if not isinstance(each, str) or not EVENT_TYPE.match(each):
            raise RegistrationError(_impossible(each))
    if len(set(names)) < len(names):
        raise RegistrationError(
            f"{name!r} lists its own name, or an alias twice. Remove the repeat."
        )
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version < 2**31:
        raise RegistrationError(
            f"{name!r}: version is {version!r}. It must be an int from 1 to 2,147,483,647."
        )

    def register(cls: type[E]) -> type[E]:
        if not isinstance(cls, type) or "__dataclass_fields__" not in vars(cls):
            raise RegistrationError(
                f"@event({name!r}) registers dataclasses. Put it above @dataclass."
            )
        registry.add(EventType(cls, name, version, names[1:]))
        return cls

    return register


def upcaster(
    name: str, *, from_version: int, redacted: Mapping[str, Any] | None = None
) -> Callable[[U], U]:
    """
    Register a function that converts stored data of an event type to the next version.

    It is called with data of version ``from_version``, an int from 1, and returns data of version
    ``from_version + 1``. Numbers with a fraction are passed as ``Decimal``, exactly as stored.
    ``name`` is the event type's current name; its aliases use the same upcasters.

    Personal data are passed as they were. Once they are erased, the stand-in is passed that
    ``redacted`` has for their path in that version: ``{"name": "erased", "phones[]": "",
    "address.street": ""}``. Without one, it is that of the same path in today's class, or else
    None.

    Raise RegistrationError for an invalid ``from_version``.
    """
    if isinstance(from_version, bool) or not isinstance(from_version, int) or from_version < 1:
        raise RegistrationError(
            f"{name!r}: from_version is {from_version!r}. It must be an int of 1 or more."
        )

    def register(function: U) -> U:
        # The module that applies the decorator. inspect.currentframe() is the public way.
        caller = inspect.currentframe()
        caller = caller and caller.f_back
        home = caller.f_globals.get("__name__", "") if caller else ""
        registry.add_upcaster(name, from_version, function, home=home)
        if redacted:
            registry.redact(function, redacted)
        return function

    return register


def retired_event(name: str) -> None:
    """
    Declare that the class of an event type was deleted for good.

    ``name`` is the stored name of the type, as it was in ``@event`` or in the aliases. Without
    this declaration a projection holds each log from such an event on, because a newer release
    may have the class. With it, projections skip the events, and folds do not pass them to
    ``apply``. ``load`` returns a ``RetiredEvent`` with the raw JSON value.

    Declare it beside the event classes (``events.py``), after the last process of a release with
    the class has ended. Raise RegistrationError for a name that no event type can have.
    """
    if not isinstance(name, str) or not EVENT_TYPE.match(name):
        raise RegistrationError(_impossible(name))
    registry.retire(name)


def _same_place(one: Any, other: Any) -> bool:
    return dotted(one) == dotted(other)


def _impossible(name: object) -> str:
    return (
        f"{name!r} cannot be an event type: use 1 to {MAX_EVENT_TYPE_LENGTH} characters, first "
        f"a letter, then letters, digits and any of _ . : -"
    )


def _clash(name: str, claims: list[EventType]) -> str:
    places = " and ".join(dotted(claim.cls) for claim in claims)
    return f"Two classes are registered as {name!r}: {places}. Rename one of them."
