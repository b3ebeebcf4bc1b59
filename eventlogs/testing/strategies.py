"""
Hypothesis strategies for events (https://hypothesis.readthedocs.io), made of their annotations.

Every event that is drawn can be stored: what the codec would refuse is left out. Constraints that
annotations declare are kept: ``Annotated[int, msgspec.Meta(gt=0)]`` draws positive numbers.

It needs Hypothesis, which the extra ``eventlogs[testing]`` installs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, timedelta
from typing import Any, Final, TypeVar

from hypothesis import reject
from hypothesis import strategies as st
from msgspec import NODEFAULT
from msgspec import inspect as types

from eventlogs import conf
from eventlogs.aggregates import Aggregate
from eventlogs.events.codec import codec_for
from eventlogs.events.registry import registry
from eventlogs.exceptions import InvalidEvent
from eventlogs.testing.appends import check_aggregate_class

__all__ = ["event_of", "events_of", "histories_of"]

E = TypeVar("E")

INT_BITS: Final = 63  # ints are drawn from those of a bigint
DIGITS: Final = 12  # of a Decimal, before the point
PLACES: Final = 2  # of a Decimal, behind it
LONGEST: Final = 5  # items of a collection, unless its annotation asks for more

# jsonb stores neither: https://www.postgresql.org/docs/current/datatype-json.html
CHARACTERS: Final = st.characters(exclude_categories=["Cs"], exclude_characters="\0")

Strategy = st.SearchStrategy[Any]
Overrides = Mapping[type, Strategy]


def event_of(cls: type[E], /, **fields_: Strategy) -> st.SearchStrategy[E]:
    """
    Return a strategy for events of one class.

    A keyword argument is the strategy of a field: ``event_of(Repaid, amount=st.integers(1, 100))``.
    Fields without one follow their annotations; one that has a default sometimes has it.

    Raise TypeError for a class without ``@event``, a field that does not exist, and an annotation
    for which no strategy is known: pass a strategy for that field.
    """
    event_type = registry.by_class(cls)
    if event_type is None:
        raise TypeError(f"{cls!r} is not an event class: put @event('…') above its @dataclass.")
    codec = codec_for(event_type)

    def can_be_stored(event: Any) -> bool:
        try:
            codec.encode(event, conf.max_event_bytes())
        except InvalidEvent:
            return False
        return True

    return _Walk().instance(types.type_info(cls), cls, fields_).filter(can_be_stored)


def events_of(
    aggregate: type[Aggregate], /, *, overrides: Overrides | None = None
) -> st.SearchStrategy[Any]:
    """
    Return a strategy for events of any class of an aggregate.

    ``overrides`` are strategies for the events of single classes, by class. Raise TypeError as
    ``event_of`` does.
    """
    check_aggregate_class(aggregate)
    own = overrides or {}
    classes = [each.cls for each in aggregate.event_types]
    return st.one_of([own[cls] if cls in own else event_of(cls) for cls in classes])


def histories_of(
    aggregate: type[Aggregate],
    /,
    *,
    starts_with: type | None = None,
    min_size: int = 1,
    max_size: int = 20,
    overrides: Overrides | None = None,
) -> st.SearchStrategy[list[Any]]:
    """
    Return a strategy for lists of events, ``min_size`` to ``max_size``, as a log may hold them.

    ``starts_with`` is the class of the first event; the others come in any order. Rules of deciders
    are ignored, since an aggregate must not refuse an event. ``overrides`` are as in ``events_of``.
    """
    events = events_of(aggregate, overrides=overrides)
    if starts_with is None:
        return st.lists(events, min_size=min_size, max_size=max_size)
    own = overrides or {}
    first = own[starts_with] if starts_with in own else event_of(starts_with)
    rest = st.lists(events, min_size=max(min_size - 1, 0), max_size=max(max_size - 1, 0))
    return st.builds(lambda one, more: [one, *more], first, rest)


class _Walk:
    """Makes strategies of msgspec's description of types, which may refer to themselves."""

    def __init__(self) -> None:
        self._known: dict[int, Strategy] = {}

    def of(self, info: types.Type, path: str) -> Strategy:
        """Return the strategy of one type; ``path`` is where it stands."""
        known = self._known.get(id(info))
        if known is None:
            # Deferred: a class may have a field of itself.
            self._known[id(info)] = st.deferred(lambda: made)
            made = self._known[id(info)] = self._make(info, path)
            return made
        return known

    def instance(self, info: Any, cls: type, own: Mapping[str, Strategy]) -> Strategy:
        """Return the strategy of a dataclass, a Struct or a NamedTuple."""
        if unknown := own.keys() - {field.name for field in info.fields}:
            raise TypeError(f"{cls.__qualname__} has no field {', '.join(sorted(unknown))}.")
        init = {each.name for each in fields(cls) if each.init} if _is_dataclass(cls) else None
        parts: dict[str, Strategy] = {}
        for field in info.fields:
            if init is not None and field.name not in init:
                continue
            if field.name in own:
                parts[field.name] = own[field.name]
                continue
            strategy = self.of(field.type, f"{cls.__qualname__}.{field.name}")
            parts[field.name] = strategy if field.required else st.one_of(_default(field), strategy)

        def build(values: dict[str, Any]) -> Any:
            try:
                return cls(**values)
            except (TypeError, NameError, AttributeError):
                raise
            except Exception:  # what the class itself refuses, e.g. in __post_init__
                return reject()

        return st.fixed_dictionaries(parts).map(build)

    def _make(self, info: types.Type, path: str) -> Strategy:
        match info:
            case types.Metadata():
                return self.of(info.type, path)
            case types.DataclassType() | types.StructType() | types.NamedTupleType():
                return self.instance(info, info.cls, {})
            case types.TypedDictType():
                wanted = {each.name: self.of(each.type, path) for each in info.fields}
                required = {each.name for each in info.fields if each.required}
                return st.fixed_dictionaries(
                    {name: each for name, each in wanted.items() if name in required},
                    optional={n: each for n, each in wanted.items() if n not in required},
                )
            case types.UnionType():
                return st.one_of([self.of(each, path) for each in info.types])
            case types.LiteralType():
                return st.sampled_from(info.values)
            case types.EnumType():
                return st.sampled_from(list(info.cls))
            case types.DictType():
                keys, values = self.of(info.key_type, path), self.of(info.value_type, path)
                least, most = _sizes(info)
                return st.dictionaries(keys, values, min_size=least, max_size=most)
            case types.TupleType():
                return st.tuples(*(self.of(each, path) for each in info.item_types))
            case types.VarTupleType():
                return self._items(info, path).map(tuple)
            case types.ListType():
                return self._items(info, path)
            case types.CustomType():
                return st.from_type(info.cls)
        for kind, make in SCALARS.items():
            if isinstance(info, kind):
                return make(info)
        name = type(info).__name__.removesuffix("Type")
        raise TypeError(
            f"No strategy is known for {path}, of type {name}. Pass one: "
            f"event_of({path.partition('.')[0]}, {path.rpartition('.')[2]}=…)."
        )

    def _items(self, info: Any, path: str) -> Strategy:
        least, most = _sizes(info)
        return st.lists(self.of(info.item_type, path), min_size=least, max_size=most)


def _is_dataclass(cls: type) -> bool:
    return hasattr(cls, "__dataclass_fields__")


def _default(field: types.Field) -> Strategy:
    if field.default_factory is not NODEFAULT:
        return st.builds(field.default_factory)
    return st.just(field.default)


def _sizes(info: Any) -> tuple[int, int]:
    """Return the shortest and the longest length to draw."""
    least: int = info.min_length or 0
    return least, least + LONGEST if info.max_length is None else info.max_length


def _ints(info: Any) -> Strategy:
    step = info.multiple_of or 1
    least, most = -(2**INT_BITS), 2**INT_BITS - 1
    if info.ge is not None:
        least = max(least, math.ceil(info.ge))
    if info.gt is not None:
        least = max(least, math.floor(info.gt) + 1)
    if info.le is not None:
        most = min(most, math.floor(info.le))
    if info.lt is not None:
        most = min(most, math.ceil(info.lt) - 1)
    return st.integers(-(-least // step), most // step).map(lambda number: number * step)


def _floats(info: Any) -> Strategy:
    lowest, highest = (
        next((bound for bound in pair if bound is not None), None)
        for pair in ((info.ge, info.gt), (info.le, info.lt))
    )
    drawn = st.floats(
        lowest,
        highest,
        allow_nan=False,
        allow_infinity=False,
        exclude_min=info.gt is not None,
        exclude_max=info.lt is not None,
    )
    if info.multiple_of is None:
        return drawn
    return drawn.map(lambda number: number // info.multiple_of * info.multiple_of)


def _texts(info: Any) -> Strategy:
    if info.pattern is None:
        most = info.max_length
        return st.text(CHARACTERS, min_size=info.min_length or 0, max_size=most)
    return st.from_regex(info.pattern, alphabet=CHARACTERS).filter(
        lambda text: (info.min_length or 0) <= len(text) <= (info.max_length or math.inf)
    )


def _decimals(info: Any) -> Strategy:
    most = 10**DIGITS
    return st.decimals(-most, most, allow_nan=False, allow_infinity=False, places=PLACES)


def _anything(info: Any) -> Strategy:
    scalars: Sequence[Strategy] = (
        st.none(),
        st.booleans(),
        st.integers(-(2**INT_BITS), 2**INT_BITS - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(CHARACTERS),
    )
    return st.recursive(
        st.one_of(*scalars),
        lambda inner: st.one_of(
            st.lists(inner, max_size=LONGEST),
            st.dictionaries(st.text(CHARACTERS), inner, max_size=LONGEST),
        ),
        max_leaves=LONGEST,
    )


# A naive datetime cannot be stored, so all are aware.
SCALARS: Final[dict[type, Callable[[Any], Strategy]]] = {
    types.AnyType: _anything,
    types.NoneType: lambda info: st.none(),
    types.BoolType: lambda info: st.booleans(),
    types.IntType: _ints,
    types.FloatType: _floats,
    types.StrType: _texts,
    types.DecimalType: _decimals,
    types.DateTimeType: lambda info: st.datetimes(timezones=st.just(UTC)),
    types.DateType: lambda info: st.dates(),
    types.TimeType: lambda info: st.times(),
    types.TimeDeltaType: lambda info: st.timedeltas(
        timedelta(days=-100_000), timedelta(days=100_000)
    ),
    types.UUIDType: lambda info: st.uuids(),
}
