"""Event types, and the registry that finds them by name."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from eventlogs import EventRecord, LogId, RegistrationError, event, upcaster
from eventlogs.events.registry import EventType, Registry, registry
from tests.accounts import Deposited


def event_class(name: str, module: str = "tests.somewhere") -> type:
    """Return a dataclass with the name of a module as its module."""
    cls = make_dataclass(name, [("amount", int)], frozen=True)
    cls.__module__ = module
    return cls


def nothing_changes(data: dict[str, Any]) -> dict[str, Any]:
    return data


def in_other_words(data: dict[str, Any]) -> dict[str, Any]:
    return data


def test_a_registered_class_is_unchanged_and_found_by_name_and_class():
    event_type = registry.by_name("account.deposited")

    assert event_type is not None
    assert event_type == registry.by_class(Deposited)
    assert (event_type.cls, event_type.version, event_type.aliases) == (Deposited, 1, ())
    assert Deposited(3).amount == 3


def test_a_name_that_is_not_registered_is_not_found():
    assert registry.by_name("account.never") is None
    assert registry.by_class(int) is None


@pytest.mark.usefixtures("scratch_registry")
def test_a_class_is_found_by_its_aliases():
    cls: Any = event("tests.renamed", version=2, aliases=["tests.old", "tests.older"])(
        event_class("Renamed")
    )

    found = {registry.by_name(name) for name in ("tests.renamed", "tests.old", "tests.older")}

    assert found == {EventType(cls, "tests.renamed", 2, ("tests.old", "tests.older"))}


@pytest.mark.parametrize(
    "name", ["", " a", "1a", "a b", "a\n", "a/b", "é", "a" * 256, "a\0", None, 7, '"a"', "a'b"]
)
@pytest.mark.usefixtures("scratch_registry")
def test_an_invalid_name_is_refused(name):
    with pytest.raises(RegistrationError, match="cannot be an event type"):
        event(name)(event_class("Nameless"))
    with pytest.raises(RegistrationError, match="cannot be an event type"):
        event("tests.fine", aliases=[name])(event_class("Nameless"))


@pytest.mark.parametrize("name", ["a", "invoice.captured", "Payment:Captured-v2_x", "a" * 255])
@pytest.mark.usefixtures("scratch_registry")
def test_a_valid_name_is_accepted(name):
    cls: Any = event(name)(event_class("Named"))

    assert registry.by_name(name) == registry.by_class(cls)


@pytest.mark.parametrize("aliases", [["tests.own"], ["tests.a", "tests.a"]])
def test_a_repeated_alias_is_refused(aliases):
    with pytest.raises(RegistrationError, match="Remove the repeat"):
        event("tests.own", aliases=aliases)


@pytest.mark.parametrize("version", [0, -1, 2**31, 1.0, "1", True, None])
def test_a_version_must_be_an_int_from_1(version):
    with pytest.raises(RegistrationError, match=r"version is .* must be an int"):
        event("tests.versioned", version=version)


@pytest.mark.parametrize("from_version", [0, -1, 1.0, "1", True, None])
def test_from_version_must_be_an_int_from_1(from_version):
    with pytest.raises(RegistrationError, match=r"from_version is .* must be an int"):
        upcaster("tests.versioned", from_version=from_version)


@pytest.mark.parametrize("thing", [type("Plain", (), {}), nothing_changes, Deposited(1), None])
@pytest.mark.usefixtures("scratch_registry")
def test_a_class_that_is_not_a_dataclass_is_refused(thing):
    with pytest.raises(RegistrationError, match="above @dataclass"):
        event("tests.plain")(thing)


@pytest.mark.usefixtures("scratch_registry")
def test_a_subclass_of_an_event_that_is_no_dataclass_itself_is_refused():
    @dataclass(frozen=True)
    class Parent:
        amount: int

    class Child(Parent):
        pass

    with pytest.raises(RegistrationError, match="above @dataclass"):
        event("tests.child")(Child)


def test_a_class_that_is_defined_again_replaces_the_previous_one():
    known = Registry()
    known.add(EventType(event_class("Reloaded"), "tests.reloaded", 1, ()))
    second = EventType(event_class("Reloaded"), "tests.reloaded", 1, ())

    known.add(second)

    assert known.by_name("tests.reloaded") is second
    assert list(known) == [second]
    assert list(known.problems()) == []


def test_a_name_that_two_classes_claim_cannot_be_looked_up():
    known = Registry()
    known.add(EventType(event_class("One"), "tests.claimed", 1, ()))
    known.add(EventType(event_class("Other"), "tests.other", 1, ("tests.claimed",)))

    with pytest.raises(RegistrationError, match=r"tests\.somewhere\.One.*tests\.somewhere\.Other"):
        known.by_name("tests.claimed")

    assert known.by_name("tests.other") is not None
    assert len(list(known)) == 2
    assert "Two classes are registered as 'tests.claimed'" in "".join(known.problems())


def test_an_upcaster_is_found_under_any_of_the_names():
    known = Registry()
    known.add_upcaster("tests.old", 1, nothing_changes)

    assert known.upcaster(("tests.new", "tests.old"), 1) is nothing_changes
    assert known.upcaster(("tests.new", "tests.old"), 2) is None
    assert known.upcaster(("tests.new",), 1) is None


@pytest.mark.parametrize(
    ("version", "upcasters", "problem"),
    [
        (1, [], None),
        (2, [(1, nothing_changes)], None),
        (3, [(1, nothing_changes), (2, nothing_changes)], None),
        (2, [], "no upcaster takes 'tests.shaped' from version 1"),
        (3, [(1, nothing_changes)], "no upcaster takes 'tests.shaped' from version 2"),
        (1, [(1, nothing_changes)], "Raise version= on the class"),
        (2, [(1, nothing_changes), (2, nothing_changes)], "Raise version= on the class"),
        (2, [(1, nothing_changes), (1, in_other_words)], "Two upcasters take 'tests.shaped'"),
    ],
)
def test_problems_lists_versions_that_do_not_fit_together(version, upcasters, problem):
    known = Registry()
    known.add(EventType(event_class("Shaped"), "tests.shaped", version, ()))
    for from_version, upcast in upcasters:
        known.add_upcaster("tests.shaped", from_version, upcast)

    found = list(known.problems())

    assert (problem is None) == (found == [])
    assert problem is None or problem in found[0]


def test_a_record_is_an_immutable_value():
    def record() -> EventRecord:
        return EventRecord(
            log_id=LogId.stored("account", log_id.uuid),
            index=0,
            position=1,
            type="account.deposited",
            schema_version=1,
            event=Deposited(1),
            metadata={"till": 7},
            idempotency_key=None,
            recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        )

    log_id = LogId.new("account")

    assert record() == record()
    with pytest.raises(AttributeError):
        record().index = 1  # type: ignore[misc]


def test_a_record_id_consists_of_the_log_id_and_the_index():
    log_id = LogId.parse("account_01h455vb4pex5vsknk084sn02q")
    here = EventRecord(log_id, 3, 17, "account.deposited", 1, None, {}, None, datetime.now(UTC))
    imported = msgspec.structs.replace(here, position=4_711)

    assert here.id == imported.id == "account_01h455vb4pex5vsknk084sn02q:3"
