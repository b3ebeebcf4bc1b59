"""Lines of exports: what was stored can be read again."""

from __future__ import annotations

import pytest
from django.utils import timezone

from eventlogs import InvalidExport, LogId
from eventlogs.stores.export_lines import event_line, read_event
from eventlogs.stores.restore import ExportedEvent
from eventlogs.values import StoredEvent


def line_of(data):
    """Return the line of an event with this data."""
    stored = StoredEvent(
        LogId.new("visitor"), 0, 1, "visitor.joined", 1, data, "{}", None, timezone.now()
    )
    return event_line(ExportedEvent(stored)).encode()


def test_encrypted_text_that_looks_like_a_large_number_is_read():
    line = line_of('{"names":[{"$personal":"1.kE526Xs6"}]}')

    assert read_event(line, 1).event.data == '{"names":[{"$personal":"1.kE526Xs6"}]}'


def test_text_that_no_database_can_store_is_refused_beside_encrypted_text():
    line = line_of('{"names":[{"$personal":"1.kE526Xs6"},"\\u0000"]}')

    with pytest.raises(InvalidExport) as caught:
        read_event(line, 7)

    assert str(caught.value) == (
        "Line 7: it holds a value that cannot be stored. Correct the file or export it again, then "
        "import it again: events that are stored already are skipped."
    )
