"""The digests of chained histories: the same bytes from Python and from PostgreSQL."""

from __future__ import annotations

import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from eventlogs.events import chain
from eventlogs.ids import LogId
from eventlogs.values import StoredEvent

LOG = LogId("account", UUID("01890a5d-ac96-774b-bcce-b302099a8057"))
EVENT = StoredEvent(
    LOG,
    0,
    7,
    "Deposited",
    1,
    '{"amount": "25.00"}',
    "{}",
    None,
    datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC),
)

# Anything that PostgreSQL takes as jsonb: no NUL, no lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NUMBER = r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?"
numbers = st.from_regex(NUMBER, fullmatch=True)
huge = st.sampled_from(
    ["1e400", "-0", "-0.0", "0e5", "0.0e-3", "0.0e5", "1E+16", "1e-300", "9" * 4_400]
)


def written(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)} : {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[ " + " ,".join(map(written, value)) + "]"
    if isinstance(value, tuple):
        return value[0]  # a number, as it is
    return json.dumps(value)


documents = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        texts,
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.tuples(numbers),
        st.tuples(huge),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=6),
    max_leaves=12,
)


def test_the_form_of_the_docs():
    previous = hashlib.sha256(b"").digest()
    keyed = replace(EVENT, index=3, idempotency_key="müll", metadata='{"b":1,"a":2}')
    microseconds = (EVENT.recorded_at - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(
        microseconds=1
    )
    lines = (
        "01890a5d-ac96-774b-bcce-b302099a8057",
        "account",
        '{"a": 2, "b": 1}',
        "Deposited",
        "1",
        "3",
        '{"amount": "25.00"}',
        "müll",
    )
    parts = (previous, struct.pack("!q", microseconds), "\n".join(lines).encode())

    assert chain.digest(previous, keyed) == hashlib.sha256(b"".join(parts)).digest()


def test_the_digest_of_the_first_event_stands_over_zeros():
    assert chain.digest(None, EVENT) == chain.digest(bytes(32), EVENT)


@pytest.mark.parametrize(
    "change",
    [
        {"log_id": LogId("account", UUID(int=1))},
        {"log_id": LogId("accounts", LOG.uuid)},
        {"index": 1},
        {"type": "Withdrawn"},
        {"schema_version": 2},
        {"data": '{"amount": "25.0"}'},
        {"data": '{"amount": 25.00}'},
        {"metadata": '{"by": 1}'},
        {"idempotency_key": ""},
        {"idempotency_key": "a"},
        {"recorded_at": EVENT.recorded_at + timedelta(microseconds=1)},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_part_counts(change):
    assert chain.digest(None, replace(EVENT, **change)) != chain.digest(None, EVENT)


def test_the_predecessor_counts():
    assert chain.digest(bytes(31) + b"1", EVENT) != chain.digest(None, EVENT)


def test_the_position_does_not_count():
    assert chain.digest(None, replace(EVENT, position=99)) == chain.digest(None, EVENT)


def test_white_space_and_order_do_not_count():
    one = replace(EVENT, data='{"bb":[1,2],"a":"\\u00fc"}')
    other = replace(EVENT, data=' {"a" : "ü", "bb": [1, 2]}')

    assert chain.digest(None, one) == chain.digest(None, other)


def test_a_text_cannot_move_into_the_next_one():
    one = replace(EVENT, type="A\n1")

    with pytest.raises(ValueError, match="line feed"):
        chain.digest(None, one)


def test_only_the_key_may_have_line_feeds():
    chain.digest(None, replace(EVENT, idempotency_key="a\nb\n"))


@pytest.mark.parametrize(
    "data", ["", "{", "NaN", "[Infinity]", '"\ud800"', "[" * 100_000, '{"a": 1} 2']
)
def test_json_that_is_none_has_no_digest(data):
    with pytest.raises(ValueError, match=r"JSON|deeply|surrogates"):
        chain.digest(None, replace(EVENT, data=data))


def test_chained_events_follow_each_other():
    second = replace(EVENT, index=1)
    first = chain.digest(None, EVENT)

    assert list(chain.chained(None, [EVENT, second])) == [first, chain.digest(first, second)]


@given(documents)
def test_the_form_is_stable(document):
    text = chain.as_jsonb(written(document))

    assert chain.as_jsonb(text) == text


@pytest.mark.postgresql
@pytest.mark.django_db
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(documents, max_size=20))
def test_postgresql_writes_the_same_json(documents):
    given = [written(each) for each in documents]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT item::jsonb::text FROM unnest(%s::text[]) WITH ORDINALITY AS t (item, n) "
            "ORDER BY n",
            [given],
        )
        found = [text for (text,) in cursor.fetchall()]

    assert [chain.as_jsonb(each) for each in given] == found
