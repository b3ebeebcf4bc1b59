"""
The shapes of events: JSON Schema of an event class, and whether data of one shape fits another.

msgspec makes the schemas (https://jcristharif.com/msgspec/jsonschema.html). It leaves a datetime
without a zone as a plain string, so ``format`` is added here: data that was any text is not
a datetime.

``differences`` answers one question: does all data that is valid in the old shape decode with the
new one? Its rules are those of the decoder: unknown fields are ignored, and a missing field has its
default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect as types

from eventlogs.events.registry import EventType
from eventlogs.exceptions import RegistrationError

Schema = dict[str, Any]

# Keywords without an effect on decoding.
WORDS: Final = frozenset({"title", "description", "examples"})
REFERENCE: Final = "#/$defs/"
LOWER_BOUNDS: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
UPPER_BOUNDS: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
FORMATS: Final = {types.DateTimeType: "date-time", types.TimeType: "time"}

FITS: Final = "fits"
NOT: Final = "does not fit"


class Difference(NamedTuple):
    """
    One difference of two shapes.

    ``path`` is the JSON path of the place. ``kind`` is FITS if old data still decodes there, or
    NOT. ``text`` describes the difference. ``field`` is the name of a field of the event itself,
    and ``what`` is "added", "removed", "changed", or "default" if only its default has changed.
    """

    path: str
    kind: str
    text: str
    field: str | None = None
    what: str = ""


def schema_of(event_type: EventType) -> Schema:
    """
    Return the JSON Schema of an event class, with its classes' names and docstrings.

    Raise RegistrationError where a field's type cannot be encoded.
    """
    try:
        schema: Schema = msgspec.json.schema(event_type.cls)
        _mark_times(types.type_info(event_type.cls), schema, schema.get("$defs", {}), set())
    except (TypeError, NameError, AttributeError) as error:
        raise RegistrationError(
            f"The fields of {event_type.cls.__qualname__} have no JSON Schema: {error}. Use types "
            f"that JSON can tell apart (https://jcristharif.com/msgspec/supported-types.html)."
        ) from error
    return schema


def shape_of(event_type: EventType) -> Schema:
    """Return the JSON Schema of an event class without words, in a stable order."""
    found: Schema = _plain(schema_of(event_type))
    return found


def event_in(schema: Mapping[str, Any]) -> Schema:
    """Return the schema of the event's object, of a schema with definitions beside it."""
    return _resolved(schema, schema)


def fields_of(shape: Mapping[str, Any]) -> dict[str, Schema]:
    """Return the fields of an event's shape: the name of each, and its shape."""
    found: dict[str, Schema] = event_in(shape).get("properties", {})
    return found


def words_of(shape: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Return a shape in a few words: "integer", "array of string", "string or null"."""
    shape = _resolved(shape, root)
    if "anyOf" in shape:
        return " or ".join(dict.fromkeys(words_of(each, root) for each in shape["anyOf"]))
    if "enum" in shape:
        return f"one of {', '.join(map(repr, shape['enum']))}"
    if "const" in shape:
        return repr(shape["const"])
    kind = shape.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array" and isinstance(shape.get("items"), Mapping):
        return f"array of {words_of(shape['items'], root)}"
    return str(shape.get("format") or kind)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Return all differences of two shapes of an event."""
    if old == new:
        return []
    compare = _Comparison(old, new)
    was, now = event_in(old), event_in(new)
    return list(compare.objects(was, now, "$", is_event=True)) or [
        Difference("$", FITS, "names of classes inside of it")
    ]


class _Comparison:
    """Whether values of one schema are values of another one, each with definitions of its own."""

    def __init__(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        self._old, self._new = old, new
        self._under_way: set[tuple[str, str]] = set()

    def values(self, old: Any, new: Any, path: str) -> Iterator[Difference]:
        """Yield the differences of two schemas."""
        both = (str(old.get("$ref")), str(new.get("$ref")))
        if "$ref" in old and "$ref" in new:
            if both in self._under_way:
                return  # a recursive type: it is compared above
            self._under_way.add(both)
        old, new = _resolved(old, self._old), _resolved(new, self._new)
        yield from self._values(old, new, path)
        self._under_way.discard(both)

    def _values(self, old: Schema, new: Schema, path: str) -> Iterator[Difference]:
        if not _of_data(new):
            if _of_data(old):
                yield Difference(path, FITS, "it may be anything now")
            return
        choices = old.get("anyOf")
        if choices is not None:
            for each in choices:
                yield from self.values(each, new, path)
            if len(new.get("anyOf", ())) > len(choices):
                yield Difference(path, FITS, "it has more choices now")
            return
        if "anyOf" in new:
            tries = [list(self.values(old, each, path)) for each in new["anyOf"]]
            if not any(all(each.kind == FITS for each in some) for some in tries):
                yield self._not(path, old, new)
            elif all(tries):
                yield from min(tries, key=len)
            else:
                yield Difference(path, FITS, "it has more choices now")
            return
        yield from self._plain_values(old, new, path)

    def _plain_values(self, old: Schema, new: Schema, path: str) -> Iterator[Difference]:
        values = _listed(old)
        if values is not None:
            if not all(_is_value(each, new) for each in values):
                yield self._not(path, old, new)
            elif values != _listed(new):
                yield Difference(path, FITS, "it has more values now")
            return
        if _listed(new) is not None:
            yield self._not(path, old, new)
            return
        was, now = old.get("type"), new.get("type")
        if was is None or (was != now and (was, now) != ("integer", "number")):
            yield self._not(path, old, new)
            return
        if was != now:
            yield Difference(path, FITS, f"{was} before, {now} now")
        for name in ("format", "contentEncoding", "pattern", "multipleOf", "uniqueItems"):
            if old.get(name) == new.get(name):
                continue
            if new.get(name) is not None:
                yield self._not(path, old, new)
                return
            yield Difference(path, FITS, f"{name} is gone")
        yield from self._bounds(old, new, path)
        if now == "object":
            yield from self.objects(old, new, path)
        elif now == "array":
            yield from self._arrays(old, new, path)

    def _bounds(self, old: Schema, new: Schema, path: str) -> Iterator[Difference]:
        for names, sign in ((LOWER_BOUNDS, 1), (UPPER_BOUNDS, -1)):
            for name in names:
                was, now = old.get(name), new.get(name)
                if was == now or "prefixItems" in new:
                    continue
                if now is not None and (was is None or sign * now > sign * was):
                    yield Difference(path, NOT, f"{name} is {now} now, and was {was}")
                else:
                    yield Difference(path, FITS, f"{name} is {now} now, and was {was}")

    def objects(
        self, old: Schema, new: Schema, path: str, *, is_event: bool = False
    ) -> Iterator[Difference]:
        """Yield the differences of two objects: of dataclasses by fields, or of mappings."""
        if "properties" not in old or "properties" not in new:
            if "properties" in old or "properties" in new:
                yield self._not(path, old, new)
            else:
                mapped = (old.get("additionalProperties", {}), new.get("additionalProperties", {}))
                if all(isinstance(each, Mapping) for each in mapped):
                    yield from self.values(*mapped, f"{path}[…]")
            return
        was, now = old["properties"], new["properties"]
        for name in was:
            at, field = f"{path}.{name}", name if is_event else None
            if name not in now:
                yield Difference(at, FITS, "it is read no more", field, "removed")
                continue
            for each in self.values(was[name], now[name], at):
                yield each._replace(field=field, what="changed")
            is_required = name in new.get("required", ())
            if is_required and name not in old.get("required", ()):
                yield Difference(at, NOT, "it has no default any more", field, "changed")
            elif was[name].get("default") != now[name].get("default"):
                yield Difference(at, FITS, "its default is another one", field, "default")
        for name in now:
            if name not in was:
                at, field = f"{path}.{name}", name if is_event else None
                is_required = name in new.get("required", ())
                yield Difference(
                    at,
                    NOT if is_required else FITS,
                    "it is new, and has no default" if is_required else "it is new",
                    field,
                    "added",
                )

    def _arrays(self, old: Schema, new: Schema, path: str) -> Iterator[Difference]:
        if ("prefixItems" in old) != ("prefixItems" in new):
            yield self._not(path, old, new)
        elif "prefixItems" in old:
            was, now = old["prefixItems"], new["prefixItems"]
            if len(was) != len(now):
                yield self._not(path, old, new)
                return
            for number, (one, other) in enumerate(zip(was, now, strict=True)):
                yield from self.values(one, other, f"{path}[{number}]")
        elif isinstance(old.get("items"), Mapping) and isinstance(new.get("items"), Mapping):
            yield from self.values(old["items"], new["items"], f"{path}[…]")
        elif isinstance(new.get("items"), Mapping) and _of_data(new["items"]):
            yield self._not(path, old, new)

    def _not(self, path: str, old: Schema, new: Schema) -> Difference:
        was, now = words_of(old, self._old), words_of(new, self._new)
        text = f"{was} before, {now} now" if was != now else f"another kind of {now} now"
        return Difference(path, NOT, text)


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Schema:
    while "$ref" in schema:
        found = root.get("$defs", {}).get(schema["$ref"].removeprefix(REFERENCE), {})
        schema = {**found, **{name: each for name, each in schema.items() if name != "$ref"}}
    return dict(schema)


def _of_data(schema: Mapping[str, Any]) -> Schema:
    """Return the part of a schema that constrains data, so without its default."""
    return {name: each for name, each in schema.items() if name not in ("default", "$defs")}


def _listed(schema: Mapping[str, Any]) -> list[Any] | None:
    """Return the values of an enum, a Literal or a tag; None for other types."""
    if "enum" in schema:
        return list(schema["enum"])
    return [schema["const"]] if "const" in schema else None


def _is_value(value: Any, schema: Mapping[str, Any]) -> bool:
    values = _listed(schema)
    if values is not None:
        return value in values
    kinds = {"string": str, "integer": int, "number": (int, float), "null": type(None)}
    kind: Any = kinds.get(str(schema.get("type")))
    constraints = {*LOWER_BOUNDS, *UPPER_BOUNDS, "format", "pattern", "contentEncoding"}
    return kind is not None and isinstance(value, kind) and not constraints & schema.keys()


def _plain(schema: Any, *, are_names: bool = False) -> Any:
    """Return a schema without words, its names and enums in order."""
    if isinstance(schema, Mapping):
        found = {}
        for name, each in sorted(schema.items()) if not are_names else schema.items():
            if not are_names and name in WORDS:
                continue
            if name == "default" and not are_names:
                found[name] = each
            elif name in ("enum", "required") and not are_names:
                found[name] = sorted(each, key=repr)
            else:
                found[name] = _plain(each, are_names=name in ("properties", "$defs"))
        return found
    return [_plain(each) for each in schema] if isinstance(schema, list) else schema


def _mark_times(info: Any, schema: Any, defs: Mapping[str, Any], seen: set[str]) -> None:
    """Add the format of times, which msgspec leaves out where no zone is demanded."""
    if not isinstance(schema, dict):
        return
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(REFERENCE)
        if name not in seen:
            seen.add(name)
            _mark_times(info, defs.get(name), defs, seen)
        return
    text = FORMATS.get(type(info))
    if text is not None:
        schema.setdefault("format", text)
    elif isinstance(info, types.UnionType):
        for each in info.types:
            for choice in schema.get("anyOf", ()):
                if _is_of(each, choice, defs):
                    _mark_times(each, choice, defs, seen)
    elif isinstance(info, types.DataclassType | types.StructType | types.TypedDictType):
        for part in info.fields:
            _mark_times(part.type, schema.get("properties", {}).get(part.encode_name), defs, seen)
    elif isinstance(info, types.TupleType):
        for each, inside in zip(info.item_types, schema.get("prefixItems", ()), strict=False):
            _mark_times(each, inside, defs, seen)
    elif isinstance(info, types.DictType):
        _mark_times(info.value_type, schema.get("additionalProperties"), defs, seen)
    elif isinstance(
        info, types.ListType | types.VarTupleType | types.SetType | types.FrozenSetType
    ):
        _mark_times(info.item_type, schema.get("items"), defs, seen)
    elif isinstance(info, types.Metadata):
        _mark_times(info.type, schema, defs, seen)


def _is_of(info: Any, choice: Mapping[str, Any], defs: Mapping[str, Any]) -> bool:
    """Return whether a choice of a union is that of a type: JSON tells the types apart."""
    found = _resolved(choice, {"$defs": defs})
    if type(info) in FORMATS:
        return found.get("type") == "string"
    if isinstance(info, types.DataclassType | types.StructType | types.TypedDictType):
        names = {each.encode_name for each in info.fields}
        return found.get("type") == "object" and names <= found.get("properties", {}).keys()
    if isinstance(info, types.DictType):
        return found.get("type") == "object"
    return found.get("type") == "array"


def json_of(value: Any) -> str:
    """Return a value as indented JSON, ending with a line break."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
