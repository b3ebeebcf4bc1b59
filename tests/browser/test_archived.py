"""The pages of archived logs: they can be read, are as wide as the window, and have no script."""

from __future__ import annotations

from typing import Any

import pytest

from eventlogs.models import ArchiveFile
from eventlogs.operations import archiving
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.admin.test_logs import LIST, of
from tests.browser.looks import picture, unreadable
from tests.browser.test_accessibility import LOOKS, axe
from tests.operations.archiving.conftest import use

pytestmark = pytest.mark.browser


@pytest.fixture
def pages(transactional_db: None, tmp_path: Any, settings: Any) -> dict[str, str]:
    use(settings, tmp_path)
    found = []
    for name in ("Ada Lovelace", "Charles"):
        state = Account.logs.create(Opened(name), Deposited(50), metadata={"user": "bob"})
        found.append(Account.logs.append(state, Withdrawn(50)).log_id)
        archiving.archive(by="grace@example.com")
    lost = ArchiveFile.objects.order_by("pk").last()
    assert lost is not None
    (tmp_path / lost.name).unlink()
    return {
        "archived logs": f"{LIST}?archived=1",
        "archived log": of(found[0], "?event=1"),
        "archived log without its file": of(found[1]),
    }


@pytest.mark.parametrize("look", LOOKS)
def test_pages_of_archived_logs_can_be_read(visit, pages, admin_user, complaints, look):
    complaints.expected += ["503", "Applying inline style", "style-src"]
    page = visit(admin_user, **LOOKS[look])
    wrong = []
    for name, where in pages.items():
        page.goto(where)
        picture(page, f"{name} ({look})")
        wrong += [f"{name}: {each}" for each in [*unreadable(page), *axe(page, ["#content"])]]
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > page.evaluate("window.innerWidth"):
            wrong.append(f"{name}: {width} pixels wide")

    assert wrong == []
