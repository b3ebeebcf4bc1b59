"""The event context in tasks of Celery; real workers are in tests/reliability/test_context.py."""

from __future__ import annotations

from celery import Celery

from eventlogs import event_context
from eventlogs.context import carried, current
from eventlogs.contrib.celery import HEADER

app = Celery("tests_of_the_context", broker="memory://", set_as_current=False)
app.conf.task_store_eager_result = False


@app.task(name="tests.note")
def note() -> str | None:
    return carried()


def test_a_message_has_the_context_in_a_header():
    with event_context(user="7"):
        note.delay()
    note.delay()

    with app.connection_for_read() as connection, connection.SimpleQueue("celery") as queue:
        found = [queue.get(timeout=10).headers.get(HEADER) for _ in range(2)]
    assert found == ['{"user":"7"}', None]


def test_an_eager_task_has_the_context_of_its_caller():
    with event_context(user="7"):
        assert note.apply().get() == '{"user":"7"}'
        assert carried() == '{"user":"7"}'
    assert current.get() is None
