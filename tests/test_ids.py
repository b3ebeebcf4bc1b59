"""Log ids."""

from __future__ import annotations

import copy
import pickle
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uuid_utils.compat import uuid7

from eventlogs import InvalidLogId, LogId, RegistrationError

# The example of the TypeID specification (https://github.com/jetify-com/typeid).
TEXT = "prefix_01h455vb4pex5vsknk084sn02q"
UUID_OF_TEXT = UUID("01890a5d-ac96-774b-bcce-b302099a8057")

log_types = st.from_regex(r"[a-z]([a-z_]{0,61}[a-z])?", fullmatch=True)
uuids = st.integers(0, 2**128 - 1).map(
    lambda number: UUID(int=number & ~(0xF << 76) & ~(0x3 << 62) | 7 << 76 | 2 << 62)
)


def test_an_id_is_the_text_that_the_specification_gives_it():
    log_id = LogId.parse(TEXT)

    assert (log_id.log_type, log_id.uuid) == ("prefix", UUID_OF_TEXT)
    assert str(LogId("prefix", UUID_OF_TEXT)) == TEXT
    assert repr(log_id) == f"LogId('{TEXT}')"


@given(log_types, uuids)
def test_every_id_is_parsed_from_its_text(log_type, uuid):
    log_id = LogId(log_type, uuid)

    assert LogId.parse(str(log_id)) == log_id


@given(st.text(max_size=120))
def test_other_text_is_not_an_id(text):
    with pytest.raises(InvalidLogId):
        LogId.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "prefix",
        "prefix_",
        "01h455vb4pex5vsknk084sn02q",
        "_01h455vb4pex5vsknk084sn02q",
        "prefix_01h455vb4pex5vsknk084sn02",
        "prefix_01h455vb4pex5vsknk084sn02qq",
        "PREFIX_01h455vb4pex5vsknk084sn02q",
        "prefix_01H455VB4PEX5VSKNK084SN02Q",
        "prefix_81h455vb4pex5vsknk084sn02q",
        "prefix_01h455vb4pex5vsknk084sn02l",
        "prefix-01h455vb4pex5vsknk084sn02q",
        " prefix_01h455vb4pex5vsknk084sn02q",
        "prefix_01h455vb4pex5vsknk084sn02q\n",
        "prefix_\0001h455vb4pex5vsknk084sn02q",
        "prefix_" + "0" * 26,  # a UUID of version 0
        str(UUID_OF_TEXT),
        "préfix_01h455vb4pex5vsknk084sn02q",
        "prefix_01h455vb4pex5vsknk084sn02\ud800",
        "a" * 64 + "_01h455vb4pex5vsknk084sn02q",
        "a" * 100_000,
    ],
)
def test_what_is_nearly_an_id_is_none(text):
    with pytest.raises(InvalidLogId):
        LogId.parse(text)


@pytest.mark.parametrize("thing", [None, 7, b"account", UUID_OF_TEXT, ["x"], object()])
def test_what_is_no_text_is_no_id(thing):
    with pytest.raises(InvalidLogId):
        LogId.parse(thing)


def test_the_text_that_was_refused_is_not_in_the_message():
    with pytest.raises(InvalidLogId) as caught:
        LogId.parse("4111-1111-1111-1111")

    assert "4111" not in f"{caught.value}{vars(caught.value)}"


@pytest.mark.parametrize(
    "log_type",
    ["", "_a", "a_", "A", "a1", "a-b", "é", "a" * 64, "a b", "a\n", None, 7],
)
def test_a_log_type_that_ids_cannot_carry_is_refused(log_type):
    with pytest.raises(RegistrationError):
        LogId.new(log_type)


@pytest.mark.parametrize("log_type", ["a", "ab", "a_b", "a__b", "a" * 63])
def test_a_log_type_that_ids_can_carry_is_taken(log_type):
    assert LogId.parse(str(LogId.new(log_type))).log_type == log_type


@pytest.mark.parametrize("uuid", [uuid4(), UUID(int=0), str(UUID_OF_TEXT), None])
def test_an_id_holds_a_uuid_of_version_7(uuid):
    with pytest.raises(InvalidLogId):
        LogId("account", uuid)


def test_an_id_made_later_sorts_later():
    ids = []
    for _ in range(5):
        ids.append(LogId.new("account"))
        time.sleep(0.002)

    assert sorted(ids, key=str) == sorted(ids) == ids


def test_ids_of_different_types_sort_by_type_and_do_not_compare_with_others():
    one, other = LogId.new("b"), LogId.new("a")

    assert sorted([one, other]) == [other, one]
    with pytest.raises(TypeError):
        _ = one < str(other)
    assert one != str(one)


def test_an_id_knows_when_it_was_made():
    before = datetime.now(UTC)

    created_at = LogId.new("account").created_at

    assert before - timedelta(milliseconds=2) <= created_at <= datetime.now(UTC)
    assert LogId.parse(TEXT).created_at == datetime(2023, 6, 30, 3, 34, 18, 518_000, tzinfo=UTC)


def test_ids_are_equal_by_type_and_uuid():
    uuid = uuid7()

    assert LogId("a", uuid) == LogId("a", uuid)
    assert hash(LogId("a", uuid)) == hash(LogId("a", uuid))
    assert LogId("a", uuid) != LogId("b", uuid)
    assert len({LogId("a", uuid), LogId("a", uuid), LogId("b", uuid)}) == 2


def test_an_id_never_changes():
    log_id = LogId.new("account")

    for change in (
        lambda: setattr(log_id, "log_type", "parcel"),
        lambda: setattr(log_id, "uuid", uuid7()),
        lambda: setattr(log_id, "other", 1),
        lambda: delattr(log_id, "uuid"),
    ):
        with pytest.raises(AttributeError):
            change()


@pytest.mark.parametrize("shown", [True, False])
def test_an_id_survives_pickling_and_copying(shown):
    log_id = LogId.new("account")
    if shown:
        str(log_id)

    copies = [
        *(
            pickle.loads(pickle.dumps(log_id, protocol))
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
        copy.copy(log_id),
        copy.deepcopy(log_id),
    ]

    assert all(each == log_id and str(each) == str(log_id) for each in copies)


def test_many_ids_are_all_different():
    assert len({LogId.new("account") for _ in range(10_000)}) == 10_000
