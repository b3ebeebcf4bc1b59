"""The system check of archives."""

from __future__ import annotations

import pytest

from eventlogs import LogManager
from eventlogs.checks.archives import check_archives
from eventlogs.operations import archiving
from tests.accounts import Account, Opened
from tests.operations.archiving.conftest import use

pytestmark = pytest.mark.django_db(transaction=True)


def test_e052_archived_logs_cannot_be_read(settings, tmp_path):
    assert list(check_archives(databases=["default"])) == []
    use(settings, tmp_path)
    LogManager(Account).create(Opened("Ada"))
    archiving.archive(by="grace")
    assert list(check_archives(databases=["default"])) == []

    settings.EVENTLOGS = {}

    assert list(check_archives(databases=None)) == []
    [message] = check_archives(databases=["default"])
    assert message.id == "eventlogs.E052"
    assert message.msg == (
        "DATABASES['default'] has archived logs, and EVENTLOGS['ARCHIVE_STORAGE'] is not set: they "
        "cannot be read."
    )
    assert message.hint == (
        "Set EVENTLOGS['ARCHIVE_STORAGE'] to the alias in STORAGES that has the files."
    )
