"""XES: the rules of the standard, and reading by PM4Py if it is installed."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest

from eventlogs import LogId
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import Event, EventLog
from eventlogs.operations import xes
from eventlogs.stores import AppendRequest, store_for
from eventlogs.values import StoredEvent
from tests.accounts import Account, Deposited, Noted, Opened
from tests.management.histories import fill

NS = "{http://www.xes-standard.org/}"
# https://www.xes-standard.org: the order of a log's children in the standard's schema.
ORDER = ["extension", "global", "classifier", "string", "trace"]
LEXICAL = {
    "string": re.compile(r".*", re.DOTALL),
    "date": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)\Z"),
    "int": re.compile(r"-?\d{1,19}\Z"),
    "float": re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?\Z"),
    "boolean": re.compile(r"(true|false)\Z"),
}
NAME = re.compile(r"[A-Za-z_:][\w:.-]*\Z", re.ASCII)


@pytest.fixture
def account(db) -> LogId:
    return Account.logs.create(Opened(owner="Ada"), Deposited(amount=1), Deposited(amount=2)).log_id


def document(**options) -> ElementTree.Element:
    text = "".join(piece.text for piece in xes.document("default", **options))
    return ElementTree.fromstring(text)


def tag(element: ElementTree.Element) -> str:
    return element.tag.removeprefix(NS)


def attributes(element: ElementTree.Element) -> dict[str, tuple[str, str]]:
    """Return type and value of an element's attributes, which it must not repeat."""
    found = [each for each in element if tag(each) in LEXICAL]
    keys = [each.get("key") for each in found]
    assert len(keys) == len(set(keys))
    return {each.get("key", ""): (tag(each), each.get("value", "")) for each in found}


def of_event(data: object, metadata: object = None) -> dict[str, tuple[str, str]]:
    return attributes(ElementTree.fromstring(piece_of(data, metadata).text))


def piece_of(data: object, metadata: object = None, path: tuple[str, ...] | None = None):
    texts = json.dumps(data), json.dumps(metadata or {})
    event = StoredEvent(LogId.new("thing"), 0, 7, "thing.happened", 1, *texts, None, MOMENT)
    return xes.event(event, path)


MOMENT = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
STANDARD = {
    "concept:name": ("string", "thing.happened"),
    "time:timestamp": ("date", "2026-01-02T03:04:05.000006+00:00"),
    "lifecycle:transition": ("string", "complete"),
    "index": ("int", "0"),
    "position": ("int", "7"),
    "schema_version": ("int", "1"),
}


def test_a_document_follows_the_standard(db):
    fill()

    log = document()

    assert tag(log) == "log"
    assert re.fullmatch(r"\d+\.\d+", log.get("xes.version", ""))  # xs:decimal
    places = [ORDER.index(tag(each)) for each in log]
    assert places == sorted(places)
    for classifier in log.iter(f"{NS}classifier"):
        assert re.fullmatch(r"[\w.-]+", classifier.get("name", ""))  # xs:NCName
    for element in log.iter():
        if tag(element) in LEXICAL:
            assert NAME.match(element.get("key", "")), element.get("key")
            assert LEXICAL[tag(element)].match(element.get("value", "")), element.attrib


def test_a_log_is_a_trace_and_an_event_an_event(db):
    fill()

    traces = document().findall(f"{NS}trace")

    assert len(traces) == EventLog.objects.count()
    for trace in traces:
        log_id = LogId.parse(attributes(trace)["concept:name"][1])
        events = [attributes(each) for each in trace.findall(f"{NS}event")]
        assert [each["concept:name"][1] for each in events] == list(
            Event.objects.for_log(log_id).values_list("type", flat=True)
        )
        assert [each["index"][1] for each in events] == [str(n) for n in range(len(events))]


def test_logs_and_log_types_can_be_chosen(account, db):
    fill()

    assert len(document(log_types=["parcel"]).findall(f"{NS}trace")) == 1
    (trace,) = document(logs=[account]).findall(f"{NS}trace")
    assert attributes(trace)["concept:name"][1] == str(account)
    assert document(logs=[account], log_types=["parcel"]).findall(f"{NS}trace") == []
    assert document(logs=[LogId.new("account")]).findall(f"{NS}trace") == []


def test_the_actor_is_the_resource():
    assert of_event({}, {"user": "ada"})["org:resource"] == ("string", "ada")
    assert of_event({}, {"actor": 7})["org:resource"] == ("string", "7")
    assert "org:resource" not in of_event({}, {"till": 7})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, ("int", "1")),
        (2**63 - 1, ("int", str(2**63 - 1))),
        (2**63, ("string", str(2**63))),
        (-0.5, ("float", "-0.5")),
        (1e22, ("float", "1e+22")),
        (True, ("boolean", "true")),
        ("text", ("string", "text")),
        ("10.50", ("string", "10.50")),
        ("2026-01-31T12:00:00Z", ("date", "2026-01-31T12:00:00Z")),
        ("2026-01-31T12:00:00.5+01:00", ("date", "2026-01-31T12:00:00.5+01:00")),
        ("2026-13-31T12:00:00Z", ("string", "2026-13-31T12:00:00Z")),
        ("2026-01-31", ("string", "2026-01-31")),
        ([1, "é"], ("string", '[1, "é"]')),
        ('<a href="x">&\'\n\t\r', ("string", '<a href="x">&\'\n\t\r')),
        ("\x1b\x00\ufffe", ("string", "\ufffd\ufffd\ufffd")),
    ],
)
def test_values_have_the_types_of_the_standard(value, expected):
    assert of_event({"field": value}) == {**STANDARD, "field": expected}


def test_nested_objects_have_dotted_names_and_null_is_left_out():
    found = of_event({"a": {"b": {"c": 1}, "none": None}}, {"request": {"ip": "::1"}})

    assert found == {**STANDARD, "a.b.c": ("int", "1"), "metadata.request.ip": ("string", "::1")}


def test_names_are_made_valid_for_xml_and_unique():
    found = of_event({"1st key": 1, "_1st_key": 2, "concept:name": 3, "index": 4, "é": 5})

    assert found == {
        **STANDARD,
        "_1st_key": ("int", "1"),
        "_1st_key_": ("int", "2"),
        "concept_name": ("int", "3"),
        "index_": ("int", "4"),
        "_": ("int", "5"),
    }


def test_data_that_is_no_object_is_exported_as_well():
    assert of_event(5)["data"] == ("int", "5")


def test_events_of_unknown_types_are_exported(account):
    unknown = [EncodedEvent("account.teleported", 1, '{"to":"Mars"}')]
    store_for("default").append(AppendRequest(account, unknown, 3, None, "{}"))

    (trace,) = document(logs=[account]).findall(f"{NS}trace")

    assert attributes(trace.findall(f"{NS}event")[3])["to"] == ("string", "Mars")


@pytest.mark.filterwarnings("ignore")  # its own
def test_pm4py_reads_a_document(tmp_path, db):
    pm4py = pytest.importorskip("pm4py")
    state = Account.logs.create(Opened(owner="Ada"), metadata={"user": "grace"})
    Account.logs.append(state, Deposited(amount=5), Noted(note="<&>"))
    path = tmp_path / "log.xes"
    path.write_text("".join(piece.text for piece in xes.document("default")), encoding="utf-8")

    frame = pm4py.read_xes(str(path))

    assert list(frame["concept:name"]) == ["account.opened", "account.deposited", "account.noted"]
    assert set(frame["case:concept:name"]) == {str(state.log_id)}
    assert frame["org:resource"][0] == "grace"
    assert frame["amount"][1] == 5


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2025-03-04T10:00:00Z", "2025-03-04T10:00:00.000000+00:00"),
        ("2025-03-04T10:00:00.25+02:00", "2025-03-04T08:00:00.250000+00:00"),
        ("2025-03-04 10:00", "2025-03-04T15:00:00.000000+00:00"),  # in the project's zone
        ("2025-03-04", "2025-03-04T05:00:00.000000+00:00"),
    ],
)
def test_an_event_takes_its_time_from_a_field(settings, value, expected):
    settings.TIME_ZONE = "America/Bogota"  # five hours behind UTC
    for data, metadata, path in (
        ({"at": value}, {}, ("data", "at")),
        ({"bank": {"at": value}}, {}, ("data", "bank", "at")),
        ({}, {"at": value}, ("metadata", "at")),
    ):
        piece = piece_of(data, metadata, path)
        found = attributes(ElementTree.fromstring(piece.text))

        assert found["time:timestamp"] == ("date", expected)
        assert found["recorded_at"] == STANDARD["time:timestamp"]
        assert piece.fallbacks == 0


@pytest.mark.parametrize(
    "data",
    [
        *({}, {"at": None}, {"at": 5}, {"at": "soon"}, {"at": ""}, {"at": {"x": 1}}, [], 5, "now"),
        *({"at": "2026-13-01"}, {"at": "0001-01-01T00:00:00+14:00"}),
    ],
)
def test_an_event_without_such_a_time_has_that_of_its_recording(data):
    piece = piece_of(data, {}, ("data", "at"))

    found = attributes(ElementTree.fromstring(piece.text))
    assert found["time:timestamp"] == STANDARD["time:timestamp"]
    assert (piece.events, piece.fallbacks) == (1, 1)


def test_a_field_of_the_name_recorded_at_is_kept():
    piece = piece_of({"at": "2025-03-04T10:00:00Z", "recorded_at": "noon"}, {}, ("data", "at"))

    found = attributes(ElementTree.fromstring(piece.text))
    assert found["recorded_at_"] == ("string", "noon")
