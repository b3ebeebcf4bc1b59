"""The form of an archive: frames that are read alone, and proved."""

from __future__ import annotations

import gzip
import io
from datetime import UTC, datetime, timedelta

import pytest

from eventlogs import LogId
from eventlogs.archives import frames
from eventlogs.archives.frames import Damaged, Reader, Writer, events_of
from eventlogs.events.chain import chained
from eventlogs.stores.restore import ExportedEvent
from eventlogs.values import StoredEvent

FIRST, SECOND = LogId.new("account"), LogId.new("account")
AT = datetime(2026, 1, 31, tzinfo=UTC)


def history(log_id, count, *, size=10):
    """Return events of a chained log as an export has them."""
    events = [
        StoredEvent(
            *(log_id, index, 7 + index, "account.noted", 1),
            *(f'{{"note": "{"x" * size}"}}', "{}", None, AT + timedelta(seconds=index)),
        )
        for index in range(count)
    ]
    return [
        ExportedEvent(event, None, AT if event.index == 0 else None, digest)
        for event, digest in zip(events, chained(None, events), strict=True)
    ]


def written(*logs):
    """Return a file, and what was written of each log."""
    out = io.BytesIO()
    writer = Writer(out)
    found = [writer.add(events[0].event.log_id, events) for events in logs]
    writer.end()
    return out.getvalue(), found


def read(file, log, **options):
    pages = Reader(io.BytesIO(file)).frames(
        log.log_id, log.frames, version=log.version, digest=log.digest, **options
    )
    return list(events_of(pages))


def test_short_logs_share_a_frame_and_each_is_read_alone():
    one, other = history(FIRST, 3), history(SECOND, 2)
    file, (first, second) = written(one, other)

    assert [each.offset for each in first.frames] == [each.offset for each in second.frames]
    assert read(file, first) == [each.event for each in one]
    assert read(file, second) == [each.event for each in other]
    assert (first.version, first.last_position, first.digest) == (3, 9, one[-1].digest)


def test_of_a_long_log_only_the_frames_that_are_asked_for_are_read(monkeypatch):
    monkeypatch.setattr(frames, "FRAME", 2_000)
    events = history(FIRST, 60, size=100)
    file, (log,) = written(events)
    assert len(log.frames) > 3

    last = log.frames[-1]
    assert [each.index for each in read(file, log, start=59)] == list(range(last.first, 60))
    cut = bytes(last.offset) + file[last.offset :]  # the others are not there
    assert read(cut, log, start=59) == [each.event for each in events[last.first :]]
    backwards = read(file, log, start=59, reverse=True)
    assert [each.index for each in backwards[:2]] == [last.first, last.first + 1]
    assert len(backwards) == 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[::-1], "the order of its events was changed"),
        (lambda lines: lines[:-1], "its events are not those that were archived"),
        (lambda lines: [*lines[:-1], lines[-1].replace(b"xxx", b"yyy")], "does not fit its digest"),
        (lambda lines: [*lines[:-1], lines[-1][:-9]], "it has a line that is no event"),
    ],
)
def test_what_was_changed_is_never_believed(change, message):
    file, (log,) = written(history(FIRST, 3))
    assert len(read(file, log)) == 3  # the frame is kept
    [frame] = log.frames
    lines = gzip.decompress(file[frame.offset : frame.offset + frame.length]).splitlines()
    data = gzip.compress(b"\n".join(change(lines)))
    changed = file[: frame.offset] + data
    log.frames = [frame._replace(length=len(data))]

    with pytest.raises(Damaged, match=message):
        read(changed, log)


def test_a_frame_that_cannot_be_decompressed():
    file, (log,) = written(history(FIRST, 3))
    read(file, log)

    with pytest.raises(Damaged, match="a part of it cannot be decompressed"):
        read(file[:-100] + bytes(100), log)


def test_a_log_that_is_not_chained_is_proved_as_well():
    events = [each._replace(digest=None) for each in history(FIRST, 3)]
    file, (log,) = written(events)
    other = written([each._replace(digest=None) for each in history(FIRST, 3, size=11)])
    changed, _ = other
    log.frames = [log.frames[0]._replace(length=len(changed))]

    with pytest.raises(Damaged):
        read(changed, log)
    assert file != changed
