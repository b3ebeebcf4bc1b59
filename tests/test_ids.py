"""Log ids."""

from __future__ import annotations

import copy
import ctypes
import json
import operator
import os
import pickle
import time
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum
from functools import partial
from uuid import NAMESPACE_DNS, UUID, uuid1, uuid3, uuid4, uuid5

import msgspec
import pytest
from django.core.serializers.json import DjangoJSONEncoder
from django.http import JsonResponse
from django.template import Context, Template
from hypothesis import given
from hypothesis import strategies as st
from uuid_utils.compat import uuid7

from eventlogs import InvalidEvent, InvalidLogId, LogId, LogManager, RegistrationError
from eventlogs.models import Event, EventLog
from eventlogs.operations import jsonl
from eventlogs.stores import store_for
from eventlogs.testing import MemoryStore
from tests.accounts import Account, Noted, Opened
from tests.processes import exit_of_fork
from tests.projections.readmodels import Balance

# The example of the TypeID specification (https://github.com/jetify-com/typeid).
TEXT = "prefix_01h455vb4pex5vsknk084sn02q"
UUID_OF_TEXT = UUID("01890a5d-ac96-774b-bcce-b302099a8057")

log_types = st.from_regex(r"[a-z]([a-z_]{0,61}[a-z])?", fullmatch=True)
uuids = st.integers(0, 2**128 - 1).map(lambda number: UUID(int=number))


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
        str(UUID_OF_TEXT),
        "préfix_01h455vb4pex5vsknk084sn02q",
        "prefix_01h455vb4pex5vsknk084sn02\ud800",
        "a" * 64 + "_01h455vb4pex5vsknk084sn02q",
        "a" * 100_000,
    ],
)
def test_text_that_is_nearly_an_id_is_refused(text):
    with pytest.raises(InvalidLogId):
        LogId.parse(text)


@pytest.mark.parametrize("thing", [None, 7, b"account", UUID_OF_TEXT, ["x"], object()])
def test_a_value_that_is_no_text_is_refused(thing):
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


@pytest.mark.parametrize("uuid", [str(UUID_OF_TEXT), UUID_OF_TEXT.int, UUID_OF_TEXT.bytes, None])
def test_an_id_holds_a_uuid_and_nothing_else(uuid):
    for make in (LogId, LogId.from_uuid):
        with pytest.raises(InvalidLogId, match=r"from_key\(\)"):
            make("account", uuid)


@given(log_types, uuids)
def test_the_id_of_a_uuid_is_the_same_each_time_and_has_it(log_type, uuid):
    log_id = LogId.from_uuid(log_type, uuid)

    assert log_id == LogId.from_uuid(log_type, uuid) == LogId.parse(str(log_id))
    assert (log_id.log_type, log_id.uuid) == (log_type, uuid)


@pytest.mark.parametrize(
    "uuid",
    [
        *(UUID(int=0), UUID(int=2**128 - 1), uuid1(), uuid3(NAMESPACE_DNS, "x"), uuid4()),
        *(uuid5(NAMESPACE_DNS, "x"), UUID(f"{UUID_OF_TEXT}".replace("-774b", "-874b"))),
        UUID(f"{UUID_OF_TEXT}".replace("-bcce", "-3cce")),  # 7, but not in this standard's form
        UUID(int=(2**48 - 1) << 80 | 7 << 76 | 2 << 62),  # past the year 9999
    ],
)
def test_an_id_that_holds_no_time_was_created_at_none(uuid):
    assert LogId.from_uuid("account", uuid).created_at is None


# Other programs compute them as well, so they never change.
IDS_OF_KEYS = {
    ("order", 42): "064c24d5-c7f1-5b38-9517-bbca8acfb5b8",
    ("order", "42"): "064c24d5-c7f1-5b38-9517-bbca8acfb5b8",
    ("order", -1): "ae029607-4a8b-5216-92be-ac661f914cbd",
    ("order", "Grüße, 注文 7"): "2ad76fa8-5a97-5a92-86af-14860ce25bd9",
    ("payment", 42): "9100f85e-4bb2-5ab3-9a71-05444a154744",
}


@pytest.mark.parametrize(("log_type", "key"), IDS_OF_KEYS)
def test_the_id_of_a_key_is_what_every_program_computes(log_type, key):
    namespace = uuid5(UUID("6d0a3ba3-6c5f-4c8e-9a57-0f1b7d2c9e84"), log_type)

    log_id = LogId.from_key(log_type, key)

    assert log_id.uuid == uuid5(namespace, str(key)) == UUID(IDS_OF_KEYS[log_type, key])
    assert log_id.uuid.version == 5
    assert log_id.created_at is None


def test_keys_of_one_text_have_one_id_and_those_of_other_types_another():
    class Text(str):
        def __str__(self) -> str:
            return "another"

    class Number(IntEnum):
        ONE = 1

    assert LogId.from_key("order", 42) == LogId.from_key("order", "42")
    assert LogId.from_key("order", Text("x")) == LogId.from_key("order", "x")
    assert LogId.from_key("order", Number.ONE) == LogId.from_key("order", 1)
    assert LogId.from_key("order", 42) != LogId.from_key("payment", 42)
    assert LogId.from_key("order", 42).uuid != LogId.from_key("payment", 42).uuid
    with pytest.raises(RegistrationError):
        LogId.from_key("Order", 42)


@pytest.mark.parametrize("key", ["", "\ud800", True, None, 1.0, uuid4(), b"x", (1, 2)])
def test_what_is_no_key_has_no_id(key):
    with pytest.raises(InvalidLogId):
        LogId.from_key("order", key)


def test_an_id_may_be_of_an_earlier_moment():
    moment = datetime(2019, 5, 6, 7, 8, 9, 123_456, tzinfo=timezone(timedelta(hours=2)))

    log_id = LogId.new("order", at=moment)

    assert log_id.created_at == moment.replace(microsecond=123_000)
    assert (log_id.uuid.version, log_id.uuid.variant) == (7, uuid7().variant)
    assert LogId.parse(str(log_id)) == log_id


def test_ids_of_earlier_moments_sort_by_the_microsecond_and_as_they_were_made():
    start = datetime(1970, 1, 1, tzinfo=UTC)
    moments = [start + timedelta(microseconds=number // 40) for number in range(4_000)]

    ids = [LogId.new("order", at=each) for each in moments]

    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_threads_and_forks_make_different_ids_of_one_moment(race):
    moment = datetime(2020, 1, 1, tzinfo=UTC)
    LogId.new("order", at=moment)

    made = race(*[lambda: [LogId.new("order", at=moment) for _ in range(500)]] * 4)
    ours = LogId.new("order", at=moment)
    read, write = os.pipe()
    exit_of_fork(lambda: os.write(write, str(LogId.new("order", at=moment)).encode()))
    theirs = LogId.parse(os.read(read, 100).decode())
    os.close(read)
    os.close(write)

    assert len({each for ids in made for each in ids}) == 2_000
    # The fork did not count on from where this process was: it began anew.
    assert abs(theirs.uuid.int - ours.uuid.int) > 2**34


@pytest.mark.parametrize(
    ("moment", "reason"),
    [
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), "before 1970"),
        (datetime.min.replace(tzinfo=UTC), "before 1970"),
        (datetime.now(UTC) + timedelta(hours=1), "in the future"),
        (datetime.max.replace(tzinfo=UTC), "in the future"),
        (datetime(2020, 1, 1), "time zone"),  # naive
        (datetime(2020, 1, 1).date(), "time zone"),
        (1_577_836_800, "time zone"),
    ],
)
def test_a_moment_that_is_no_ids_time_is_refused(moment, reason):
    with pytest.raises(InvalidLogId, match=reason):
        LogId.new("order", at=moment)


def test_a_clock_that_is_a_little_ahead_is_no_mistake():
    assert LogId.new("order", at=datetime.now(UTC) + timedelta(seconds=2)).created_at


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


def test_an_id_has_the_time_of_its_creation():
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


@given(st.integers(0, 2**128 - 1))
def test_an_id_of_stored_bytes_is_that_of_the_uuid_with_these_bytes(number):
    uuid = UUID(int=number)
    of_bytes, of_uuid = LogId.stored_as("account", uuid.bytes), LogId.stored("account", uuid)

    assert of_bytes == of_uuid
    assert pickle.loads(pickle.dumps(of_bytes)) == of_uuid
    assert of_bytes.uuid == uuid
    assert of_bytes.uuid is of_bytes.uuid
    assert of_bytes.log_type == "account"
    with pytest.raises(AttributeError, match="has no attribute 'version'"):
        _ = of_bytes.version


def test_many_ids_are_all_different():
    assert len({LogId.new("account") for _ in range(10_000)}) == 10_000


# An id is written as its text.


def test_an_id_goes_into_json_as_its_text():
    log_id = LogId.new("account")
    text = str(log_id)

    assert type(text) is str
    assert json.dumps({"id": log_id, log_id: 1}) == f'{{"id": "{text}", "{text}": 1}}'
    assert json.dumps([log_id], cls=DjangoJSONEncoder) == f'["{text}"]'
    assert JsonResponse({"id": log_id}).content == f'{{"id": "{text}"}}'.encode()
    assert msgspec.json.encode([log_id], enc_hook=str) == f'["{text}"]'.encode()
    assert f"{log_id} {log_id!s:>40}" == f"{text} {text:>40}"
    assert Template("{{ id }}").render(Context({"id": log_id})) == text


def test_an_id_is_an_argument_of_a_celery_task():
    kombu = pytest.importorskip("kombu.utils.json")
    log_id = LogId.new("account")

    (argument,) = kombu.loads(kombu.dumps([log_id]))

    assert argument == str(log_id)
    assert LogId.parse(argument) == log_id


def test_an_id_is_a_field_of_a_schema_of_pydantic():
    pydantic = pytest.importorskip("pydantic")
    schema = pydantic.create_model("Schema", log_id=(LogId, ...), text=(str, ...))
    log_id = LogId.new("account")

    made = schema(log_id=log_id, text=log_id)
    read = schema.model_validate_json(made.model_dump_json())

    assert (made.log_id, made.text) == (log_id, str(log_id))
    assert isinstance(read.log_id, LogId)
    assert read.log_id == log_id
    assert json.loads(read.model_dump_json()) == {"log_id": str(log_id), "text": str(log_id)}
    assert schema.model_json_schema()["properties"]["log_id"]["type"] == "string"
    for wrong in ("account", "4111-1111-1111-1111", 7, None):
        with pytest.raises(pydantic.ValidationError):
            schema(log_id=wrong, text="")


def test_a_row_with_an_id_is_shown_by_django_ninja():
    ninja = pytest.importorskip("ninja")

    class Out(ninja.ModelSchema):  # type: ignore[misc, name-defined]
        class Meta:
            model = Balance
            fields = ["log_id", "owner"]

    log_id = LogId.new("account")

    shown = Out.from_orm(Balance(log_id=log_id, owner="ada")).model_dump_json()

    assert json.loads(shown) == {"log_id": str(log_id), "owner": "ada"}


def test_an_id_is_not_equal_to_its_text():
    """A text that was not parsed may be invalid, or the id of another log."""
    log_id = LogId.new("account")
    text = str(log_id)

    assert (log_id == text, text == log_id) == (False, False)
    assert (log_id != text, text != log_id) == (True, True)
    assert text not in {log_id}
    assert log_id not in [text]
    for compare in (operator.lt, operator.le, operator.gt, operator.ge):
        for one, other in ((log_id, text), (text, log_id), (log_id, 7)):
            with pytest.raises(TypeError):
                compare(one, other)


@given(log_types, uuids, log_types, uuids)
def test_ids_sort_by_type_and_uuid(one_type, one_uuid, other_type, other_uuid):
    one, other = LogId(one_type, one_uuid), LogId(other_type, other_uuid)
    parts, other_parts = (one_type, one_uuid), (other_type, other_uuid)

    assert (one < other) == (parts < other_parts)
    assert (one <= other) == (parts <= other_parts)
    assert (one > other) == (parts > other_parts)
    assert (one >= other) == (parts >= other_parts)
    assert (one == other) == (parts == other_parts)
    assert (one != other) == (parts != other_parts)


def test_an_id_in_an_event_or_in_metadata_has_to_be_given_as_text():
    """The id would be read as a plain text."""
    accounts = LogManager(Account, store=MemoryStore())
    log_id = accounts.new_id()

    for event, metadata in ((Noted(log_id), None), (Opened(log_id), None), (Opened("a"), log_id)):
        with pytest.raises(InvalidEvent, match="LogId is not stored; pass a plain str"):
            accounts.create(event, metadata=metadata and {"log": metadata})  # type: ignore[arg-type]
    assert accounts.create(Noted(str(log_id)), metadata={"log": str(log_id)}).version == 1


def test_an_id_is_an_idempotency_key_by_its_text():
    accounts = LogManager(Account, store=MemoryStore())
    order = LogId.new("order")

    state = accounts.create(Opened("ada"), idempotency_key=order)

    assert accounts.get_or_create(Opened("ada"), idempotency_key=str(order)) == (state, False)
    assert type(accounts.load(state.log_id)[0].idempotency_key) is str


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("fork", [os.fork, ctypes.CDLL(None).fork], ids=["in Python", "in C"])
def test_forked_processes_make_ids_unlike_each_others(fork):
    """Apart from their time: uWSGI forks in C, where no hook of Python's is called."""

    def answer(descriptor: int) -> None:
        os.write(descriptor, LogId.new("account").uuid.bytes[-7:])

    LogId.new("account")
    made = []
    for _ in range(2):
        read, write = os.pipe()
        assert exit_of_fork(partial(answer, write), fork=fork) == 0
        made.append(os.read(read, 7))
        os.close(read)
        os.close(write)

    assert len(made[0]) == 7
    assert made[0] != made[1]


OTHER_VERSIONS = {
    "a key": LogId.from_key("account", 42),
    "version 1": LogId.from_uuid("account", UUID("f81d4fae-7dec-11d0-a765-00a0c91e6bf6")),
    "version 4": LogId.from_uuid("account", UUID("0c6a1f5e-3a3c-4f0e-9d0a-000000000000")),
    "nil": LogId.from_uuid("account", UUID(int=0)),
    "max": LogId.from_uuid("account", UUID(int=2**128 - 1)),
}


@pytest.mark.parametrize("log_id", OTHER_VERSIONS.values(), ids=OTHER_VERSIONS)
def test_ids_of_every_version_go_through_stores_fields_and_exports(accounts, log_id, db):
    accounts.create(Opened("ada"), log_id=log_id)
    accounts.append(log_id, Noted(7), expected_version=1)
    row = Balance(log_id=str(log_id), owner="ada")
    row.clean_fields()

    assert accounts.reduce(str(log_id)).version == 2
    assert [each.log_id for each in accounts.load(log_id)] == [log_id] * 2
    assert row.log_id == log_id
    if isinstance(accounts._writing_store(), MemoryStore):
        return
    assert EventLog.objects.get(pk=log_id.uuid).log_id == log_id
    assert {each.log.log_id for each in Event.objects.for_log(str(log_id))} == {log_id}
    pages = list(jsonl.export_pages_of_a_moment("default", logs=[log_id]))
    lines = [jsonl.header(after=0), *(line for page in pages for line in page.lines)]
    file = [line.encode() for line in [*lines, jsonl.footer(events=2, until=0)]]
    assert jsonl.import_lines(store_for("default"), file).present == 2
    imported = MemoryStore()
    assert jsonl.import_lines(imported, file).stored == 2
    assert imported.version(log_id) == 2
