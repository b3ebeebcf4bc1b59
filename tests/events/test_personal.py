"""The personal places of a class: what is found, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from enum import Enum
from typing import Annotated, Any, Generic, NamedTuple, NewType, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pytest

from eventlogs import LogId, Personal, RegistrationError
from eventlogs.events.personal import personal_places, template_of
from eventlogs.exceptions import InvalidEvent

NAME = Personal(subject="member", redacted="gone")
T = TypeVar("T")


def class_of(hint: Any, member: Any = int) -> type:
    """Return a dataclass with a field of a type, and a subject behind it."""
    return make_dataclass("Event", [("value", hint), ("member", member)])


def found(hint: Any, value: Any) -> tuple[list[str], dict[str, Any]]:
    """Return the subjects and paths that are found, and the JSON with ``?`` in their places."""
    node = personal_places(class_of(hint))
    assert node is not None
    template = template_of(node, json.dumps({"value": value, "member": 7}))
    text = template.filled(lambda each: '"?"')
    return [f"{each.subject} {each.path}" for each in template.values], json.loads(text)["value"]


@dataclass
class Own:
    member: str
    name: Annotated[str, NAME]


@dataclass
class Inner:
    name: Annotated[str, NAME]
    town: str = ""


@dataclass
class Tree:
    name: Annotated[str, NAME]
    children: list[Tree] = field(default_factory=list)


@dataclass
class Box(Generic[T]):
    inside: T


class Pair(NamedTuple):
    town: str
    name: Annotated[str, NAME]


class Typed(TypedDict, total=False):
    name: Annotated[str, NAME]


class Renamed(msgspec.Struct, rename="camel"):
    last_name: Annotated[str, NAME]


class Cat(msgspec.Struct, tag="cat"):
    name: Annotated[str, NAME]


class Dog(msgspec.Struct, tag="dog"):
    name: str


@pytest.mark.parametrize(
    ("hint", "value", "paths", "rest"),
    [
        (Annotated[str, NAME], "Ada", ["7 $.value"], "?"),
        (Annotated[str, "a comment", NAME], "Ada", ["7 $.value"], "?"),
        (Annotated[str, NAME] | None, "Ada", ["7 $.value"], "?"),
        (Annotated[str | None, NAME], "Ada", ["7 $.value"], "?"),
        (Annotated[str | None, NAME], None, [], None),
        (NewType("Name", Annotated[str, NAME]), "Ada", ["7 $.value"], "?"),
        (list[Annotated[str, NAME]], ["a", "b"], ["7 $.value[0]", "7 $.value[1]"], ["?", "?"]),
        (Sequence[Annotated[str, NAME]] | None, ["a"], ["7 $.value[0]"], ["?"]),
        (tuple[Annotated[str, NAME], ...], ["a"], ["7 $.value[0]"], ["?"]),
        (tuple[int, Annotated[str, NAME]], [1, "a"], ["7 $.value[1]"], [1, "?"]),
        (dict[str, Annotated[str, NAME]], {"k": "a"}, ["7 $.value.k"], {"k": "?"}),
        (Mapping[str, Annotated[str, NAME]], {"a.b": "a"}, ['7 $.value["a.b"]'], {"a.b": "?"}),
        (Inner, {"name": "a", "town": "U"}, ["7 $.value.name"], {"name": "?", "town": "U"}),
        (Own, {"member": "x", "name": "a"}, ["x $.value.name"], {"member": "x", "name": "?"}),
        (list[Inner], [{"name": "a"}], ["7 $.value[0].name"], [{"name": "?"}]),
        (Inner | list[int] | None, {"name": "a"}, ["7 $.value.name"], {"name": "?"}),
        (Inner | list[int] | None, [1], [], [1]),
        (
            Tree,
            {"name": "a", "children": [{"name": "b", "children": []}]},
            ["7 $.value.name", "7 $.value.children[0].name"],
            {"name": "?", "children": [{"name": "?", "children": []}]},
        ),
        (Box[Annotated[str, NAME]], {"inside": "a"}, ["7 $.value.inside"], {"inside": "?"}),
        (Box[int] | None, {"inside": 1}, None, None),
        (Pair, ["U", "a"], ["7 $.value[1]"], ["U", "?"]),
        (Typed, {"name": "a"}, ["7 $.value.name"], {"name": "?"}),
        (Typed, {}, [], {}),
        (Renamed, {"lastName": "a"}, ["7 $.value.lastName"], {"lastName": "?"}),
        (
            Cat | Dog,
            {"type": "cat", "name": "a"},
            ["7 $.value.name"],
            {"type": "cat", "name": "?"},
        ),
        (Cat | Dog, {"type": "dog", "name": "a"}, [], {"type": "dog", "name": "a"}),
        (
            Annotated[dict[str, str], Personal(subject="member", redacted={})],
            {"a": "b"},
            ["7 $.value"],
            "?",
        ),
    ],
)
def test_annotations_are_found_at_any_depth(hint, value, paths, rest):
    if paths is None:
        assert personal_places(class_of(hint)) is None
        return

    assert found(hint, value) == (paths, rest)


class Color(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("hint", "value", "subject"),
    [
        (str, "a", "a"),
        (int, -5, "-5"),
        (UUID, "6d0a3ba3-6c5f-4c8e-9a57-0f1b7d2c9e84", "6d0a3ba3-6c5f-4c8e-9a57-0f1b7d2c9e84"),
        (Color, "red", "red"),
        (str | None, "é", "é"),
    ],
)
def test_a_subject_is_a_text_or_a_number(hint, value, subject):
    node = personal_places(class_of(Annotated[str, NAME], hint))
    assert node is not None

    template = template_of(node, json.dumps({"value": "x", "member": value}))

    assert [each.subject for each in template.values] == [subject]


@pytest.mark.parametrize("member", [None, "", "$unique", "x" * 256])
def test_a_value_without_a_possible_subject_is_refused(member):
    node = personal_places(class_of(Annotated[str, NAME], str | None))
    assert node is not None

    with pytest.raises(InvalidEvent) as caught:
        template_of(node, json.dumps({"value": "x", "member": member}))

    assert caught.value.path == "$.value"
    template_of(node, json.dumps({"value": "x", "member": "y"}))


@pytest.mark.parametrize(
    ("hint", "member", "message"),
    [
        (Annotated[str, Personal(subject="user", redacted="")], int, "neither its class nor"),
        (Annotated[str, Personal(subject="member")], int, "redacted=None, which is not a value"),
        (Annotated[int, Personal(subject="member", redacted="x")], int, "not a value of its type"),
        (Annotated[str, Personal(subject="member", redacted=object())], int, "not a value of its"),
        (list[Annotated[str, Personal(subject="member")]], int, "redacted=None"),
        (Annotated[str, NAME], float, "must be a str, an int, a UUID"),
        (Annotated[str, NAME], list[int], "must be a str, an int, a UUID"),
        (Annotated[str, NAME], Annotated[str, NAME], "which is personal data itself"),
        (Annotated[str, Personal(subject="value", redacted="")], int, "which is personal data"),
        (dict[Annotated[str, NAME], int], int, "at the keys of a dict"),
        (Annotated[str, NAME, NAME], int, "two Personal annotations"),
        (Annotated[list[Annotated[str, NAME]], NAME], int, "two Personal annotations"),
        (Annotated[str, NAME] | Annotated[int, NAME], int, "several parts of a union"),
        (Annotated[str, Personal], int, "which needs a subject"),
        (type[Annotated[str, NAME]], int, "where it would not be found"),
    ],
)
def test_a_wrong_declaration_is_refused(hint, member, message):
    with pytest.raises(RegistrationError, match=message):
        personal_places(class_of(hint, member))


@pytest.mark.parametrize("arguments", [{"subject": ""}, {"subject": 5}])
def test_a_personal_without_a_subject_is_refused(arguments):
    with pytest.raises(RegistrationError, match="name of a field"):
        Personal(**arguments)


@pytest.mark.parametrize("prefix", ["$x", 5])
def test_a_wrong_prefix_is_refused(prefix):
    with pytest.raises(RegistrationError, match="prefix"):
        Personal(subject="member", prefix=prefix)


def test_an_array_without_names_cannot_hold_its_own_subject():
    class Named(NamedTuple):
        member: str
        name: Annotated[str, NAME]

    with pytest.raises(RegistrationError, match="without the names of its fields"):
        personal_places(class_of(Named))


def test_a_class_without_annotations_has_no_places():
    assert personal_places(class_of(list[dict[str, LogId]])) is None
