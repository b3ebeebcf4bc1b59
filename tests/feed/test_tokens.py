"""Tokens: their text, their digests, and which events they name."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlogs.conf import MAX_POSITION
from eventlogs.feed.tokens import DIGEST_SIZE, MAX_WITNESSES, Place, Token, Witness, witnesses_of
from eventlogs.ids import LogId
from eventlogs.values import StoredEvent

LOG = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
TIME = datetime(2026, 11, 28, 4, 30, 1, 234567, tzinfo=UTC)
PLACE = Place(7, LOG, 3, TIME)
EVENT = StoredEvent(
    LogId.stored("account", LOG), 3, 7, "account.opened", 1, '{"owner": "ada"}', "{}", None, TIME
)

TEXT = "AQAAAAAAAAAHAAAAAAAAAAcBiQpdrJZ3S7zOswIJmoBX6gMiJR96_nncovDC9HYe_26DvNg"

NOT_A_TOKEN = (
    "after is not a checkpoint of a page. Pass a position, or page.checkpoint as it was returned."
)

positions = st.integers(0, MAX_POSITION)
witnesses = st.builds(
    Witness, positions, st.uuids(), st.binary(min_size=DIGEST_SIZE, max_size=DIGEST_SIZE)
)


def log(number: int) -> UUID:
    return UUID(int=number)


def place(position: int, number: int) -> Place:
    return Place(position, log(number), 0, TIME)


@given(st.builds(Token, positions, st.lists(witnesses, max_size=MAX_WITNESSES).map(tuple)))
def test_the_text_of_a_token_is_read_as_it_was_written(token):
    text = str(token)

    assert Token.parse(text) == token
    assert len(text) <= 200
    assert set(text) <= set(urlsafe_b64encode(bytes(range(256)) * 3).decode())


def test_the_format_never_changes():
    token = Token(7, (Witness.of(PLACE),))

    assert str(token) == TEXT
    assert Token.parse(TEXT) == token


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "seven",
        "æøå",
        str(Token(7))[:-1],
        str(Token(7))[1:],
        str(Token(7)) * 2,
        str(Token(7, (Witness.of(PLACE),)))[:60],
        str(Token(7)).swapcase(),
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="checkpoint") as caught:
        Token.parse(text)

    assert str(caught.value) == NOT_A_TOKEN


def test_a_token_of_a_later_format_is_refused(monkeypatch):
    monkeypatch.setattr("eventlogs.feed.tokens.FORMAT", 2)
    later = str(Token(7))
    monkeypatch.undo()

    with pytest.raises(ValueError, match="checkpoint"):
        Token.parse(later)


def test_a_change_of_any_bit_is_refused():
    packed = urlsafe_b64decode(str(Token(7, (Witness.of(PLACE),))) + "==")

    for at in range(len(packed) * 8):
        changed = bytearray(packed)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(ValueError, match="checkpoint"):
            Token.parse(urlsafe_b64encode(changed).decode())


@pytest.mark.parametrize(
    "other",
    [
        PLACE._replace(position=8),
        PLACE._replace(log=log(1)),
        PLACE._replace(at=4),
        PLACE._replace(recorded_at=TIME + timedelta(microseconds=1)),
    ],
)
def test_a_digest_stands_over_every_part(other):
    assert Place.of(EVENT) == PLACE
    assert other.digest() != PLACE.digest()


def test_a_digest_needs_no_payload():
    redacted = StoredEvent(
        EVENT.log_id, 3, 7, "account.opened", 1, '{"owner": "erased"}', '{"a": 1}', None, TIME
    )

    assert Place.of(redacted).digest() == PLACE.digest()


def test_a_naive_time_is_in_the_time_zone_of_the_settings(settings):
    settings.TIME_ZONE = "Asia/Kolkata"
    naive = (TIME + timedelta(hours=5, minutes=30)).replace(tzinfo=None)

    assert PLACE._replace(recorded_at=naive).digest() == PLACE.digest()


def test_witnesses_are_the_last_events_of_different_logs():
    places = [place(9, 1), place(8, 1), place(7, 2), place(6, 1), place(5, 3), place(4, 4)]

    assert witnesses_of(places, ()) == tuple(map(Witness.of, [places[0], places[2], places[4]]))


def test_witnesses_of_an_earlier_token_fill_up():
    earlier = tuple(map(Witness.of, [place(5, 1), place(4, 2), place(3, 3)]))

    found = witnesses_of([place(9, 9), place(8, 2)], earlier)

    assert [each.position for each in found] == [9, 8, 5]
    assert witnesses_of([], earlier) == earlier


def test_the_witness_at_the_position_of_the_token_stays():
    # On a replica that is behind, the last event is below the token.
    earlier: tuple[Witness, ...] = (Witness.of(place(9, 9)),)

    for position in range(1, 6):
        earlier = witnesses_of([place(position, position)], earlier)

    assert [each.position for each in earlier] == [9, 5, 4]
