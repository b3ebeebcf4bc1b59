"""Ids in pasted or typed text, in any notation."""

from __future__ import annotations

from urllib.parse import quote
from uuid import UUID

import pytest
from django.contrib.admin.utils import quote as quote_of_admin
from hypothesis import given
from hypothesis import strategies as st

from eventlogs import InvalidLogId, LogId
from eventlogs.operations.pasted_ids import (
    MOST,
    SHORTEST,
    Named,
    beginnings,
    ends,
    log_id,
    names_in,
)
from tests.test_ids import log_types, uuids

UUID_OF_ALL = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
ID = "payment_01h455vb4pex5vsknk084sn02q"
BARE = "01h455vb4pex5vsknk084sn02q"
TYPED = Named(UUID_OF_ALL, "payment")
UNTYPED = Named(UUID_OF_ALL)
EVENT = Named(UUID_OF_ALL, "payment", 3)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (ID, TYPED),
        (ID.upper(), TYPED),
        (ID.title(), TYPED),
        (f"  {ID}\n", TYPED),
        (f'"{ID}"', TYPED),
        (f"“{ID}”,", TYPED),
        (f"_{ID}_", TYPED),  # of Markdown
        (f"Please look at {ID}.", TYPED),
        (f"log={ID}&x=1", TYPED),
        (f"\u200e{ID[:9]}\u00ad{ID[9:]}\ufeff", TYPED),  # invisible characters
        (f"{ID[:20]}\n  {ID[20:]}", TYPED),  # a line break of an e-mail
        ("payment_OIH455VB4PEX5VSKNK084SNO2Q", TYPED),  # letters in place of digits
        ("payment_0lh455vb4pex5vsknk084sn02q", TYPED),
        (f"order_{BARE}", Named(UUID_OF_ALL, "order")),
        (f"order_of_parts_{BARE}", Named(UUID_OF_ALL, "order_of_parts")),
        (f"v2_{BARE}", UNTYPED),  # "v2" is no log type
        (BARE, UNTYPED),
        (BARE.upper(), UNTYPED),
        (f"({BARE})", UNTYPED),
        ("01890a5d-ac96-774b-bcce-b302099a8057", UNTYPED),
        ("01890A5D-AC96-774B-BCCE-B302099A8057", UNTYPED),
        ("01890a5dac96774bbcceb302099a8057", UNTYPED),
        ("01890a5d\u2011ac96\u2013774b\u2212bcce-b302099a8057", UNTYPED),  # hyphens of print
        ("{01890a5d-ac96-774b-bcce-b302099a8057}", UNTYPED),
        ("urn:uuid:01890a5d-ac96-774b-bcce-b302099a8057", UNTYPED),
        (f"{ID}:3", EVENT),
        (f"{ID.upper()}:3", EVENT),
        (f"{ID}%3A3", EVENT),
        (f"'{ID}:3'", EVENT),
        (f"{BARE}:3", Named(UUID_OF_ALL, None, 3)),
        ("01890a5d-ac96-774b-bcce-b302099a8057:3", Named(UUID_OF_ALL, None, 3)),
        (f"https://a.example/admin/eventlogs/eventlog/{ID}/change/", TYPED),
        (f"https://a.example/admin/eventlogs/eventlog/{ID}/change/?event=3", EVENT),
        (f"https://a.example/admin/eventlogs/eventlog/{ID}/change/#event-3", EVENT),
        (f"/admin/eventlogs/eventlog/{ID}/change/?aggregate=A&event=3#event-3", EVENT),
        (f"/admin/eventlogs/event/{ID}:3/", EVENT),
        (f"/admin/eventlogs/event/?log={ID}&from=2026-01-01", TYPED),
        (f"/admin/eventlogs/event/?metadata=causation_id%3D{quote(ID + ':3')}", EVENT),
        (f"/admin/eventlogs/eventlog/{quote_of_admin(ID)}/change/", TYPED),
        (f"{ID}:99999999999", TYPED),  # no log has so many events
        (f"{ID}:9999999999", TYPED),
        (f"{ID}:3rd", TYPED),
    ],
)
def test_an_id_is_found_in_any_notation(text, named):
    assert names_in(text) == [named]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        ID[:-1],
        ID + "2",
        "payment_81h455vb4pex5vsknk084sn02q",  # more than 128 bits
        "payment_01h455vb4pex5vsknk084sn02u",  # U is no character of it
        "01890a5d-ac96-774b-bcce-b302099a805",
        "01890a5d-ac96-774b-bcce-b302099a80577",
        "é" * 300,
        "_" * 300,
        "\0",
    ],
)
def test_other_text_contains_no_id(text):
    assert names_in(text) == []


def test_all_ids_of_a_text_are_found_each_once():
    other = LogId.new("order")

    assert names_in(f"{ID} and {other}, then {ID}") == [TYPED, Named(other.uuid, "order")]
    assert len(names_in(" ".join(str(LogId.new("order")) for _ in range(MOST + 9)))) == MOST


@given(log_types, uuids, st.none() | st.integers(0, 2**31 - 1), st.data())
def test_every_id_is_found_in_every_notation(log_type, uuid, index, data):
    text = str(LogId(log_type, uuid)) + ("" if index is None else f":{index}")
    letters = [data.draw(st.sampled_from([each, each.upper()])) for each in text]
    before, after = data.draw(st.sampled_from([("", ""), (" ", "\n"), ("/", "/"), ("«", "».")]))

    assert names_in(before + "".join(letters) + after) == [Named(uuid, log_type, index)]
    forms = [str(uuid), uuid.hex, uuid.urn, f"{{{uuid}}}", str(uuid).upper()]
    assert names_in(data.draw(st.sampled_from(forms))) == [Named(uuid)]


@given(st.text(max_size=200))
def test_any_text_can_be_searched_without_an_error(text):
    for each in (names_in, beginnings, ends):
        each(text)


# For commands


@pytest.mark.parametrize("text", [ID, ID.upper(), f" {ID}\n", f"'{ID}'", f"{ID}:3", ID.title()])
def test_a_command_accepts_an_id_in_other_notations(text):
    assert log_id(text) == LogId.parse(ID)


@pytest.mark.parametrize("text", ["", "x", ID[:-1], f"{ID} {ID}", f"the {ID}", f"/a/{ID}/change/"])
def test_a_command_refuses_an_id_among_other_text(text):
    with pytest.raises(InvalidLogId, match="not a log id"):
        log_id(text)


@pytest.mark.parametrize("text", [BARE, str(UUID_OF_ALL), BARE.upper()])
def test_a_command_requires_the_log_type(text):
    with pytest.raises(InvalidLogId, match=f"lacks its log type.*payment_{BARE}"):
        log_id(text)


# Parts of ids


@given(log_types, uuids, st.integers(1, 25))
def test_an_id_is_matched_by_its_beginning(log_type, uuid, length):
    text = str(LogId(log_type, uuid))
    bare = text.rpartition("_")[2]

    for asked in (bare[:length], bare[:length].upper(), f"{bare[:length]}…"):
        found = beginnings(asked)
        assert bool(found) == (length >= SHORTEST)
        assert not found or found[0].lowest <= uuid <= found[0].highest
    [typed] = beginnings(f"{log_type}_{bare[:length]}")
    assert typed.lowest <= uuid <= typed.highest
    assert typed.log_type == log_type
    assert str(LogId.stored("x", typed.lowest)).startswith(f"x_{bare[:length]}")
    assert str(LogId.stored("x", typed.highest)).startswith(f"x_{bare[:length]}")


@given(uuids, st.integers(1, 35))
def test_a_uuid_is_matched_by_its_beginning_and_its_end(uuid, length):
    text = str(uuid)[:length].rstrip("-")
    if len(text.replace("-", "")) >= SHORTEST:
        assert any(each.lowest <= uuid <= each.highest for each in beginnings(text))
    text = str(uuid)[-length:].lstrip("-")
    if len(text.replace("-", "")) >= SHORTEST:
        assert any(not each.text and uuid.hex.endswith(each.digits) for each in ends(text))


@given(log_types, uuids, st.integers(SHORTEST, 25))
def test_an_id_is_matched_by_its_end(log_type, uuid, length):
    text = str(LogId(log_type, uuid))

    for asked in (text[-length:], text[-length:].upper(), f"…{text[-length:]}"):
        found = [each for each in ends(asked) if each.text]
        assert [each.text for each in found] == [text[-length:]]
        assert uuid.hex.endswith(found[0].digits)


@pytest.mark.parametrize("text", ["01890-a5dac96", "0189-0a5d-ac96", "01890a5d--ac96", "ac967-74b"])
def test_text_with_misplaced_hyphens_is_no_uuid(text):
    assert [each for each in ends(text) if not each.text] == []
    assert [each for each in beginnings(text) if "-" in text] == []


@pytest.mark.parametrize("text", ["", "_", "payment_", "short", "u" * 9, "9zzzzzz", "a b c d e f"])
def test_other_text_is_no_beginning(text):
    assert beginnings(text) == []
