"""Answers: entity tags, conditional requests, and earlier states."""

from __future__ import annotations

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpResponse, JsonResponse
from django.test import RequestFactory

from eventlogs import LogNotFound, LogState, VersionNotReached
from eventlogs.contrib.http import Problem, areduce_for, reduce_for, with_etag
from tests.accounts import Account, Deposited, Opened

pytestmark = pytest.mark.django_db
factory = RequestFactory()
accounts = Account.logs


@pytest.fixture
def account() -> LogState:
    return accounts.create(Opened("ada"), Deposited(1), Deposited(2))


def test_a_response_has_the_etag_and_is_for_its_caller_only(account):
    response = with_etag(factory.get("/"), JsonResponse({}), account)

    assert response.headers["ETag"] == account.etag
    assert response.headers["Cache-Control"] == "private, no-cache"
    assert response.headers["Vary"] == "Authorization, Cookie"


def test_the_view_may_say_how_long_a_response_is_kept(account):
    response = HttpResponse(headers={"Cache-Control": "max-age=60", "Vary": "Accept"})

    found = with_etag(factory.get("/"), response, account)

    assert found.headers["Cache-Control"] == "max-age=60"
    assert found.headers["Vary"] == "Accept, Authorization, Cookie"


def test_a_response_that_nobody_may_keep_is_never_304(account):
    """E.g. with personal data: forgetting a person does not change the ETag."""
    request = factory.get("/", headers={"If-None-Match": account.etag})
    response = HttpResponse("a", headers={"Cache-Control": "no-store"})

    found = with_etag(request, response, account)

    assert (found.status_code, found.content) == (200, b"a")
    assert found.headers["Cache-Control"] == "no-store"


def test_a_creation_has_its_location(account):
    response = with_etag(
        factory.post("/"), JsonResponse({}, status=201), account, location="/é/\r\nX: y"
    )

    assert response.status_code == 201
    assert response.headers["Location"] == "/%C3%A9/%0D%0AX:%20y"


@pytest.mark.parametrize("method", ["get", "head"])
@pytest.mark.parametrize("tags", ["{etag}", "W/{etag}", '"x", {etag}', "*"])
def test_what_the_caller_has_is_304(account, method, tags):
    request = getattr(factory, method)(
        "/", headers={"If-None-Match": tags.format(etag=account.etag)}
    )

    response = with_etag(request, JsonResponse({"a": 1}), account)

    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["ETag"] == account.etag
    assert response.headers["Cache-Control"] == "private, no-cache"


def test_what_the_caller_does_not_have_is_sent(account):
    request = factory.get("/", headers={"If-None-Match": '"x"'})

    assert with_etag(request, JsonResponse({}), account).status_code == 200


@pytest.mark.parametrize("method", ["get", "head"])
def test_a_read_with_an_old_if_match_is_a_problem(account, method):
    old = getattr(factory, method)("/", headers={"If-Match": '"old"'})
    current = getattr(factory, method)("/", headers={"If-Match": account.etag})

    with pytest.raises(Problem) as caught:
        with_etag(old, JsonResponse({}), account)

    assert caught.value.status == 412
    assert with_etag(current, JsonResponse({}), account).status_code == 200


@pytest.mark.parametrize("headers", [{"If-Match": '"old"'}, {"If-None-Match": "*"}])
def test_the_answer_to_a_change_is_not_conditional(account, headers):
    """Its precondition was about the state before the change."""
    request = factory.post("/", headers=headers)

    assert with_etag(request, JsonResponse({}), account).status_code == 200


def test_a_state_is_current_or_earlier(account):
    [_, second, third] = accounts.load(account.log_id)
    at = second.recorded_at.isoformat().replace("+", "%2B")

    found = [
        reduce_for(factory.get(f"/{query}"), accounts, account.log_id).version
        for query in ("", "?version=2", "?at=9999-12-31T23:59:59Z", f"?at={at}")
    ]

    assert found[:3] == [3, 2, 3]
    assert found[3] == (3 if third.recorded_at == second.recorded_at else 2)


@pytest.mark.parametrize(
    "query", ["version=0", "version=x", "version=%D9%A1", "at=2026-01-31", "at=2026-02-31T00:00Z"]
)
def test_a_malformed_state_is_400(account, query):
    with pytest.raises(Problem) as caught:
        reduce_for(factory.get(f"/?{query}"), accounts, account.log_id)

    assert caught.value.status == 400


def test_a_version_and_a_moment_are_400(account):
    with pytest.raises(Problem, match="not both"):
        reduce_for(factory.get("/?version=1&at=2026-01-31T12:00:00Z"), accounts, account.log_id)


def test_a_state_that_does_not_exist_is_an_error_of_reduce(account):
    with pytest.raises(VersionNotReached):
        reduce_for(factory.get("/?version=4"), accounts, account.log_id)
    with pytest.raises(LogNotFound):
        reduce_for(factory.get("/"), accounts, accounts.new_id())


@pytest.mark.django_db(transaction=True)
def test_a_state_in_async_code(account):
    found = async_to_sync(areduce_for)(factory.get("/?version=1"), accounts, account.log_id)

    assert found.version == 1
