"""
Personal data in events: ``Annotated[str, Personal(subject="member_id", redacted="erased")]``.

This module finds the annotated places of a class once, at any depth, and finds the values at these
places in the JSON of an event. It encrypts nothing: ``eventlogs.privacy`` does.

It walks through JSON, not through objects: an encoded event was validated already, and the text of
a value is what is encrypted. ``msgspec.Raw`` leaves all other text as it is.
"""

from __future__ import annotations

import collections.abc
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, is_dataclass
from types import UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import msgspec
from msgspec import inspect as types

from eventlogs.conf import MAX_SUBJECT_LENGTH
from eventlogs.exceptions import InvalidEvent, RegistrationError

NAME: Final = "$personal"
MARKER: Final = f'"{NAME}":'  # in JSON text, it is always the name of a member
MARKER_BYTES: Final = MARKER.encode()
RESERVED: Final = "$"  # subjects of eventlogs' own begin like this

OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
ARRAY: Final = msgspec.json.Decoder(list[msgspec.Raw])
TEXT: Final = msgspec.json.Decoder(str)
# Keeps the order of names; a Raw is written as it is.
WRITER: Final = msgspec.json.Encoder(decimal_format="string")
GAP: Final = "\0"  # in no JSON text: it is escaped there
GAP_RAW: Final = msgspec.Raw(GAP.encode())

ITERABLES: Final = {
    *(list, set, frozenset, collections.abc.Collection, collections.abc.Sequence),
    *(collections.abc.MutableSequence, collections.abc.Set, collections.abc.MutableSet),
}
MAPPINGS: Final = {dict, collections.abc.Mapping, collections.abc.MutableMapping}


@dataclass(frozen=True, slots=True, eq=False)
class Personal:
    """
    Declare that a value of an event is personal data of a subject, and can be forgotten.

    Write ``name: Annotated[str, Personal(subject="member_id", redacted="erased")]``. The value is
    stored encrypted, under a key of its subject. Code that reads the event sees the plain value,
    and ``redacted`` once the subject was forgotten. It needs the extra ``eventlogs[privacy]`` and
    ``EVENTLOGS["ENCRYPTION_KEYS"]``.

    ``subject`` is the name of a field of the same class, or of the class around it, whose value
    names the person: a str, an int, a UUID or a member of an Enum of these. It is not encrypted.
    ``prefix`` is put in front of it: with ``prefix="member:"``, 42 is the subject ``member:42``.
    A subject has 1 to 255 characters, and does not begin with ``$``.

    ``redacted`` is the stand-in, a value of the field's type. It may be left out where the type
    allows None, which it is then. None as a value is stored as null, and not encrypted.

    The annotation may stand at a field, at the items of a list, tuple, set or dict, and in nested
    dataclasses. Raise RegistrationError for a declaration that cannot work, when the class is
    first used by an aggregate.
    """

    subject: str = field(kw_only=True)
    redacted: Any = field(default=None, kw_only=True)
    prefix: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not isinstance(self.subject, str) or not self.subject:
            raise RegistrationError(
                f"Personal(subject={self.subject!r}): subject must be the name of a field, e.g. "
                f"subject='member_id'."
            )
        if not isinstance(self.prefix, str) or self.prefix.startswith(RESERVED):
            raise RegistrationError(
                f"Personal(subject={self.subject!r}): prefix is {self.prefix!r}. It must be a str "
                f"that does not begin with $, e.g. prefix='member:'."
            )


class PersonalValue(NamedTuple):
    """A value to be encrypted: whose it is, where it stands, and its JSON."""

    subject: str
    path: str
    plain: bytes


class Template(NamedTuple):
    """JSON text with gaps between the pieces, and the personal values that belong there."""

    pieces: list[str]
    values: list[PersonalValue]

    def filled(self, text_of: Callable[[PersonalValue], str]) -> str:
        """Return the JSON with the text of each value in its gap."""
        first, *others = self.pieces
        parts = [first]
        for value, piece in zip(self.values, others, strict=True):
            parts += [text_of(value), piece]
        return "".join(parts)


@dataclass(slots=True)
class Here:
    """A personal value."""

    personal: Personal
    stand_in: bytes
    takes_null: bool = False  # null is a value of its type


@dataclass(slots=True)
class Members:
    """An object of a class: its personal members, and the names of all."""

    declared: frozenset[str] = frozenset()
    nodes: dict[str, Node] = field(default_factory=dict)
    tag: tuple[str, Any] | None = None


@dataclass(slots=True)
class All:
    """An array or object, each item or value of which is like ``node``."""

    node: Node
    is_object: bool = False


@dataclass(slots=True)
class Places:
    """An array with a type for each place."""

    nodes: dict[int, Node]


@dataclass(slots=True)
class AnyOf:
    """One of several arrays or objects."""

    nodes: list[Node]


Node = Here | Members | All | Places | AnyOf
Scope = tuple[tuple[frozenset[str], dict[str, msgspec.Raw]], ...]


def step(path: str, name: str) -> str:
    """Return the path of an object's member; different members have different paths."""
    return f"{path}.{name}" if name.isidentifier() else f"{path}[{json.dumps(name)}]"


def template_of(node: Node, data: str) -> Template:
    """
    Return the JSON of an event with gaps for its personal values.

    Raise InvalidEvent for a value whose subject cannot be one.
    """
    values: list[PersonalValue] = []
    text = bytes(_emptied(node, msgspec.Raw(data.encode()), "$", (), values)).decode()
    return Template(text.split(GAP), values)


def child_of(node: Node | None, key: str | int, members: Any = None) -> Node | None:
    """Return the node of a member or an item, or None where nothing in it is personal."""
    match node:
        case Members(nodes=nodes, tag=tag):
            if tag is not None and members is not None and not _is_tagged(members, tag):
                return None
            return nodes.get(key) if isinstance(key, str) else None
        case All(node=inside, is_object=is_object):
            return inside if isinstance(key, str) == is_object else None
        case Places(nodes=places):
            return places.get(key) if isinstance(key, int) else None
        case AnyOf(nodes=either):
            found = (child_of(each, key, members) for each in either)
            return next((each for each in found if each is not None), None)
    return None


def _is_tagged(members: dict[str, msgspec.Raw], tag: tuple[str, Any]) -> bool:
    name, value = tag
    return name in members and msgspec.json.decode(members[name]) == value


def _emptied(
    node: Node, raw: msgspec.Raw, path: str, scopes: Scope, values: list[PersonalValue]
) -> msgspec.Raw:
    """Return the JSON with a gap for each personal value, which are added to ``values``."""
    text = bytes(raw)
    if isinstance(node, Here):
        if text == b"null":
            return raw
        values.append(PersonalValue(_subject(node.personal, scopes, path), path, text))
        return GAP_RAW
    first = text[:1]
    if first == b"{":
        members = OBJECT.decode(text)
        for name in members:
            child = child_of(node, name, members)
            if child is not None:
                inner = ((_declared(node, members), members), *scopes)
                # Read before it is replaced: a subject may stand behind its personal data.
                members[name] = _emptied(child, members[name], step(path, name), inner, values)
        return msgspec.Raw(WRITER.encode(members))
    if first == b"[":
        items = ARRAY.decode(text)
        for at, item in enumerate(items):
            child = child_of(node, at)
            if child is not None:
                items[at] = _emptied(child, item, f"{path}[{at}]", scopes, values)
        return msgspec.Raw(WRITER.encode(items))
    return raw


def filled(node: Node | None, raw: bytes) -> bytes:
    """Return JSON with the stand-in for each null where the class takes none."""

    def value(here: Here, raw: bytes) -> bytes:
        return here.stand_in if raw == b"null" and not here.takes_null else raw

    return _replaced(node, raw, value)


def without_personal(node: Node | None, raw: bytes) -> bytes:
    """Return JSON with the stand-in for each personal value that is not null."""
    return _replaced(node, raw, lambda here, raw: raw if raw == b"null" else here.stand_in)


def _replaced(node: Node | None, raw: bytes, value: Callable[[Here, bytes], bytes]) -> bytes:
    """Return JSON in which ``value`` has replaced each value at a personal place."""
    if isinstance(node, Here):
        return value(node, raw)
    first = raw[:1]
    if node is None or first not in (b"{", b"["):
        return raw
    if first == b"{":
        members = OBJECT.decode(raw)
        for name, each in members.items():
            child = child_of(node, name, members)
            members[name] = msgspec.Raw(_replaced(child, bytes(each), value))
        return WRITER.encode(members)
    items = ARRAY.decode(raw)
    inside = (_replaced(child_of(node, at), bytes(each), value) for at, each in enumerate(items))
    return WRITER.encode([msgspec.Raw(each) for each in inside])


def _declared(node: Node, members: dict[str, msgspec.Raw]) -> frozenset[str]:
    match node:
        case Members(declared=declared, tag=tag):
            return declared if tag is None or _is_tagged(members, tag) else frozenset()
        case AnyOf(nodes=either):
            return frozenset().union(*(_declared(each, members) for each in either))
    return frozenset()


def _subject(personal: Personal, scopes: Scope, path: str) -> str:
    for declared, members in scopes:
        if personal.subject in declared:
            raw = bytes(members.get(personal.subject, b"null"))
            if raw.startswith(b'"'):
                return checked_subject(personal.prefix + TEXT.decode(raw), path)
            if raw.removeprefix(b"-").isdigit():
                return checked_subject(personal.prefix + raw.decode(), path)
            break
    raise InvalidEvent(
        f"it is personal, and its subject {personal.subject!r} has no value", path=path
    )


def checked_subject(subject: str, path: str) -> str:
    """Return a subject; raise InvalidEvent for one that cannot be one."""
    if not 0 < len(subject) <= MAX_SUBJECT_LENGTH or subject.startswith(RESERVED):
        raise InvalidEvent(
            f"its subject must have 1 to {MAX_SUBJECT_LENGTH} characters, and must not begin with "
            f"{RESERVED}",
            path=path,
        )
    return subject


# Finding the annotations of a class


class Finder:
    """Finds the personal places of a class, and checks what is declared there."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, tuple[Any, ...], frozenset[str]], Members] = {}

    def of_class(self, cls: Any, binding: dict[Any, Any], around: dict[str, Any]) -> Members | None:
        """Return the personal members of a class; ``around`` are the fields of classes around."""
        hints = _hints(cls)
        if hints is None:
            return None
        fields = {**around, **{name: (cls, hint) for name, hint in hints.items()}}
        key = (cls, tuple(binding.items()), frozenset(fields))
        if key in self._known:
            return self._known[key]
        found = self._known[key] = Members(frozenset(hints), tag=_tag(cls))
        for name, hint in hints.items():
            where = f"{cls.__qualname__}.{name}"
            node = self.position(hint, where, binding, fields)
            if node is not None:
                found.nodes[name] = node
        return found

    def position(
        self, hint: Any, where: str, binding: dict[Any, Any], fields: dict[str, Any]
    ) -> Node | None:
        """Return the node of a field, an item or a value of a type."""
        node = self._node(hint, where, binding, fields)
        if not isinstance(node, Here):
            return node
        personal = node.personal
        if personal.subject not in fields:
            raise RegistrationError(
                f"{where} is personal data of subject {personal.subject!r}, and neither its class "
                f"nor one around it has such a field. Name a field that holds the person's id: "
                f"Personal(subject='member_id')."
            )
        _, subject_hint = fields[personal.subject]
        if is_personal_type(subject_hint):
            raise RegistrationError(
                f"{where} has the subject {personal.subject!r}, which is personal data itself. A "
                f"subject is stored as it is: name a field that holds an id."
            )
        if not _can_be_subject(subject_hint, binding):
            raise RegistrationError(
                f"{where} has the subject {personal.subject!r}, which must be a str, an int, a "
                f"UUID, or a member of an Enum of these. Name another field."
            )
        try:
            node.stand_in = WRITER.encode(personal.redacted)
            msgspec.json.decode(node.stand_in, type=_bound(hint, binding))
        except Exception:  # also of a type's own __post_init__
            raise RegistrationError(
                f"{where} is personal data with redacted={personal.redacted!r}, which is not a "
                f"value of its type. Name what stands there once the person is forgotten: "
                f"Personal(subject={personal.subject!r}, redacted=…)."
            ) from None
        with suppress(Exception):
            msgspec.json.decode(b"null", type=_bound(hint, binding))
            node.takes_null = True
        return node

    def _node(
        self, hint: Any, where: str, binding: dict[Any, Any], fields: dict[str, Any]
    ) -> Node | None:
        hint = _plain(hint, binding)
        origin, args = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return self._annotated(hint, where, binding, fields)
        if origin is Literal:
            return None
        if origin is Union or origin is UnionType:
            return self._union(args, where, binding, fields)
        if origin in ITERABLES and args:
            inside = self.position(args[0], where, binding, fields)
            return None if inside is None else All(inside)
        if origin in MAPPINGS and args:
            key, value = args
            if is_personal_type(key):
                raise RegistrationError(
                    f"{where} has a Personal at the keys of a dict. Keys are stored as they are: "
                    f"keep personal data in the values."
                )
            inside = self.position(value, where, binding, fields)
            return None if inside is None else All(inside, is_object=True)
        if origin is tuple:
            if args[-1:] == (...,):
                inside = self.position(args[0], where, binding, fields)
                return None if inside is None else All(inside)
            places = {
                at: node
                for at, each in enumerate(args)
                if (node := self.position(each, where, binding, fields)) is not None
            }
            return Places(places) if places else None
        cls = origin or hint
        if isinstance(cls, type) and _hints(cls) is not None:
            parameters = getattr(cls, "__parameters__", ())
            bound = dict(zip(parameters, (_bound(each, binding) for each in args), strict=False))
            return self._of_nested(cls, bound, fields)
        if is_personal_type(hint):
            raise RegistrationError(
                f"{where} has a Personal inside of a type where it would not be found: {hint}. "
                f"Annotate the field itself."
            )
        return None

    def _of_nested(self, cls: Any, binding: dict[Any, Any], fields: dict[str, Any]) -> Node | None:
        members = self.of_class(cls, binding, fields)
        if members is None:
            return None
        if _is_array(cls):
            # Without a name for each member, a subject of the class itself is not found.
            places = {
                at: members.nodes[name]
                for at, name in enumerate(_hints(cls) or {})
                if name in members.nodes
            }
            for name, node in members.nodes.items():
                if isinstance(node, Here) and node.personal.subject in members.declared:
                    raise RegistrationError(
                        f"{cls.__qualname__}.{name} is personal data, and its class is stored as "
                        f"an array, without the names of its fields. Use a dataclass, or a subject "
                        f"of the class around it."
                    )
            return Places(places) if places else None
        return members

    def _annotated(
        self, hint: Any, where: str, binding: dict[Any, Any], fields: dict[str, Any]
    ) -> Node | None:
        found = []
        for each in hint.__metadata__:
            if each is Personal:
                raise RegistrationError(
                    f"{where} is annotated with Personal, which needs a subject. Write "
                    f"Personal(subject='member_id')."
                )
            if isinstance(each, Personal):
                found.append(each)
        if not found:
            return self._node(hint.__origin__, where, binding, fields)
        if len(found) > 1 or is_personal_type(hint.__origin__):
            raise RegistrationError(
                f"{where} has two Personal annotations for one value. Keep the outer one, which "
                f"encrypts all of it, or the inner ones."
            )
        return Here(found[0], b"null")

    def _union(
        self, args: Any, where: str, binding: dict[Any, Any], fields: dict[str, Any]
    ) -> Node | None:
        nodes = [
            node for each in args if (node := self._node(each, where, binding, fields)) is not None
        ]
        if len(nodes) < 2:
            return nodes[0] if nodes else None
        if any(isinstance(each, Here) for each in nodes):
            raise RegistrationError(
                f"{where} has a Personal at several parts of a union. Annotate the union as a "
                f"whole: Annotated[A | B, Personal(…)]."
            )
        return AnyOf(nodes)


def personal_places(cls: type) -> Members | None:
    """
    Return the personal places of an event class, or None if it has none.

    Raise RegistrationError for a declaration that cannot work. Raise NameError where an annotation
    cannot be evaluated.
    """
    hints = get_type_hints(cls, include_extras=True)
    if not any(map(is_personal_type, hints.values())):
        return None
    return Finder().of_class(cls, {}, {})


def is_personal_type(hint: Any) -> bool:
    """Return whether a type has personal data in it, at any depth."""
    return any(True for _ in _annotations(hint))


def _hints(cls: Any) -> dict[str, Any] | None:
    """Return the types of a class's fields by their names in JSON, or None for other classes."""
    if not isinstance(cls, type):
        return None
    if issubclass(cls, msgspec.Struct):
        names = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
        hints = get_type_hints(cls, include_extras=True)
        return {json_name: hints[name] for name, json_name in names.items()}
    is_named_tuple = issubclass(cls, tuple) and hasattr(cls, "_fields")
    if is_dataclass(cls) or is_typeddict(cls) or is_named_tuple or hasattr(cls, "__attrs_attrs__"):
        return get_type_hints(cls, include_extras=True)
    return None


def _is_array(cls: Any) -> bool:
    return issubclass(cls, tuple) or (
        issubclass(cls, msgspec.Struct) and cls.__struct_config__.array_like
    )


def _tag(cls: Any) -> tuple[str, Any] | None:
    config = getattr(cls, "__struct_config__", None)
    return None if config is None or config.tag is None else (config.tag_field, config.tag)


def _plain(hint: Any, binding: dict[Any, Any]) -> Any:
    while True:
        if hasattr(hint, "__value__"):  # of a `type` statement (Python 3.12)
            hint = hint.__value__
        elif hasattr(hint, "__supertype__"):  # a NewType
            hint = hint.__supertype__
        elif isinstance(hint, TypeVar) and hint in binding:
            hint = binding[hint]
        elif getattr(get_origin(hint), "__name__", "") in ("Required", "NotRequired", "Final"):
            (hint,) = get_args(hint)
        else:
            return hint


def _bound(hint: Any, binding: dict[Any, Any]) -> Any:
    """Return a type with its type variables replaced."""
    parameters = getattr(hint, "__parameters__", ())
    if isinstance(hint, TypeVar):
        return binding.get(hint, Any)
    if not parameters or isinstance(hint, type):
        return _plain(hint, binding)
    return hint[tuple(binding.get(each, Any) for each in parameters)]


def _annotations(hint: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Yield the Personals in a type, at any depth."""
    seen = set() if seen is None else seen
    hint = _plain(hint, {})
    if get_origin(hint) is Annotated:
        yield from (each for each in hint.__metadata__ if isinstance(each, Personal))
        yield from (each for each in hint.__metadata__ if each is Personal)
        yield from _annotations(hint.__origin__, seen)
        return
    if get_origin(hint) is Literal:
        return
    for cls in (hint, get_origin(hint)):
        if isinstance(cls, type) and id(cls) not in seen:
            seen.add(id(cls))
            for each in (_hints(cls) or {}).values():
                yield from _annotations(each, seen)
    for each in get_args(hint):
        yield from _annotations(each, seen)


def _can_be_subject(hint: Any, binding: dict[Any, Any]) -> bool:
    try:
        info = types.type_info(_bound(hint, binding))
    except Exception:
        return False
    kinds = info.types if isinstance(info, types.UnionType) else (info,)
    return all(
        isinstance(
            each,
            types.StrType
            | types.IntType
            | types.UUIDType
            | types.EnumType
            | types.LiteralType
            | types.NoneType,
        )
        for each in kinds
    )
