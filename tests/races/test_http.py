"""
Races of processes that send requests with one key, or one ETag, to the payments API.

Each check is run on the real views and on deliberately broken ones, in which it finds the defect.
"""

from __future__ import annotations

from collections import Counter

import pytest

from eventlogs import LogId
from example_project.payments.events import Authorized, Payment, Requested
from tests.races import COMMITS, http_jobs
from tests.races.http_jobs import Response

pytestmark = COMMITS
payments = Payment.logs
ROUNDS = 4


@pytest.fixture
def payment(transactional_db: None) -> LogId:
    """A payment of 1,000, all of which is authorized; its version is 2."""
    return payments.create(Requested(1_000), Authorized(1_000, None)).log_id


def raced(crew, count: int, address: str, *bodies, defect: str | None = None, **headers: str):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return crew.race(count, http_jobs.post, address, list(bodies), names, defect)


def found_in(responses: list[Response], *, added: int) -> list[str]:
    """Return what is wrong with the responses of callers that had one key."""
    done = {each[2:] for each in responses if each.status < 300}
    winners = {each.body for each in responses if each.status < 300}
    refused = [each for each in responses if each.status >= 300]
    wrong = []
    if added != 1:
        wrong.append(f"{added} events")
    if len(done) != 1:
        wrong.append(f"{len(done)} answers")
    if len(winners) > 1:
        wrong.append("two bodies succeeded")
    if any(each.status != 422 or each.body in winners for each in refused):
        wrong.append("a retry was refused, or not with 422")
    return wrong


def race_of_a_capture(crew, callers, payment, *bodies, defect=None, key="k", **headers):
    before = payments.version(payment)
    responses = raced(
        crew, callers, f"/payments/{payment}/capture/", *bodies, defect=defect,
        idempotency_key=key, **headers,
    )  # fmt: skip
    return found_in(responses, added=payments.version(payment) - before)


def test_all_callers_with_one_key_get_one_answer(crew, callers, payment):
    for round in range(ROUNDS):
        assert race_of_a_capture(crew, callers, payment, {"amount": 40}, key=f"k{round}") == []


def test_all_callers_with_one_key_get_one_answer_with_an_etag_too(crew, callers, payment):
    for round in range(ROUNDS):
        etag = payments.reduce(payment).etag
        assert (
            race_of_a_capture(crew, callers, payment, {"amount": 4}, key=f"k{round}", if_match=etag)
            == []
        )


def test_of_callers_with_one_key_the_one_with_another_body_is_refused(crew, callers, payment):
    for round in range(ROUNDS):
        bodies = {"amount": 4}, {"amount": 5}
        assert race_of_a_capture(crew, callers, payment, *bodies, key=f"k{round}") == []


def test_creates_with_one_key_make_one_payment(crew, callers, transactional_db):
    for round in range(ROUNDS):
        responses = raced(
            crew, callers, "/payments/", {"amount": 1}, {"amount": 2}, idempotency_key=f"k{round}"
        )

        assert found_in(responses, added=1) == []


def test_of_callers_with_one_etag_one_succeeds(crew, callers, payment):
    for _ in range(ROUNDS):
        etag = payments.reduce(payment).etag
        responses = raced(
            crew, callers, f"/payments/{payment}/capture/", {"amount": 1}, if_match=etag
        )

        statuses = Counter(each.status for each in responses)
        assert statuses == {200: 1, 412: callers - 1}


def test_a_digest_that_is_not_compared_is_found(crew, callers, payment):
    bodies = {"amount": 4}, {"amount": 5}

    assert "two bodies succeeded" in race_of_a_capture(
        crew, callers, payment, *bodies, defect="WithoutDigest"
    )


def test_a_key_that_is_not_passed_is_found(crew, callers, payment):
    found = race_of_a_capture(crew, callers, payment, {"amount": 4}, defect="WithoutKey")

    assert f"{callers} events" in found


def test_an_etag_that_is_compared_before_the_append_is_found(crew, callers, payment):
    etag = payments.reduce(payment).etag
    responses = raced(
        crew, callers, f"/payments/{payment}/capture/", {"amount": 1},
        defect="ComparedBefore", if_match=etag,
    )  # fmt: skip

    assert sum(each.status == 200 for each in responses) > 1
