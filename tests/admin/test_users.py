"""Links from metadata to the pages of users."""

from __future__ import annotations

import re

import pytest
from django.contrib.admin import site
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from eventlogs import event_context
from tests.accounts import Account, Deposited, Opened
from tests.admin import test_logs
from tests.admin.test_events import LIST
from tests.admin.test_logs import of, shown

pytestmark = pytest.mark.django_db
reader = test_logs.reader  # a fixture


@pytest.fixture
def eve() -> User:
    return User.objects.create_user("eve")


@pytest.fixture
def addresses(eve: User) -> list[str]:
    """The pages that show the user of an event."""
    with event_context(user=str(eve.pk)):
        state = Account.logs.create(Opened("ada"))
        Account.logs.append(state, Deposited(1))
    record = f"{state.log_id}:0"
    return [of(state.log_id), LIST, reverse("admin:eventlogs_event_tree", args=[record])]


@pytest.fixture
def may_view_users(reader) -> None:
    user = User.objects.get(username="reader")
    user.user_permissions.add(Permission.objects.get(codename="view_user"))


def link_to(user: User) -> str:
    address = reverse("admin:auth_user_change", args=[user.pk])
    return f'by <a href="{address}"><bdi>{user.username} ({user.pk})</bdi></a>'


@pytest.mark.usefixtures("may_view_users")
def test_the_pages_link_to_the_user_with_one_query(reader, addresses, eve):
    for address in addresses:
        with CaptureQueriesContext(connection) as queries:
            page = shown(reader, address)

        assert link_to(eve) in page, address
        sql = [each["sql"] for each in queries]
        assert sum(".password" in re.sub('["`]', "", each) and " IN (" in each for each in sql) == 1


def test_without_the_permission_to_view_users_there_is_the_id(reader, addresses, eve):
    for address in addresses:
        page = shown(reader, address)

        assert f"by <bdi>{eve.pk}</bdi>" in page
        assert "/auth/user/" not in page


@pytest.mark.usefixtures("may_view_users")
def test_a_site_without_users_has_no_links(reader, addresses, monkeypatch):
    monkeypatch.delitem(site._registry, User)

    for address in addresses:
        assert "/auth/user/" not in shown(reader, address)


@pytest.mark.usefixtures("may_view_users")
@pytest.mark.parametrize("name", ["import", "999999999", "9" * 30, "-1", "1.5", "", "x" * 300])
def test_a_name_without_a_user_has_no_link(reader, name):
    state = Account.logs.create(Opened("ada"), metadata={"user": name})

    assert "/auth/user/" not in shown(reader, of(state.log_id))


@pytest.mark.usefixtures("may_view_users")
def test_another_key_of_the_metadata_is_no_user(reader, eve):
    state = Account.logs.create(Opened("ada"), metadata={"actor": str(eve.pk)})

    page = shown(reader, of(state.log_id))
    assert f"by <bdi>{eve.pk}</bdi>" in page
    assert "/auth/user/" not in page
