"""Async appends with personal data, many at once."""

from __future__ import annotations

import asyncio

import pytest
from asgiref.sync import async_to_sync

from eventlogs import ANY
from tests.people import Admitted, Moved, Patient

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])


def test_appends_that_wait_together_are_all_readable():
    state = Patient.logs.create(Moved("A"))

    async def append_all() -> None:
        await asyncio.gather(
            *(
                Patient.logs.aappend(
                    state.log_id, Admitted(number % 3, f"n{number}"), expected_version=ANY
                )
                for number in range(20)
            ),
            *(Patient.logs.acreate(Admitted(number, "new")) for number in range(5)),
        )

    async_to_sync(append_all)()

    records = list(Patient.logs.load(state.log_id, start=1))
    assert sorted(each.event.name for each in records) == sorted(f"n{n}" for n in range(20))


def test_a_decision_is_stored_encrypted():
    state = Patient.logs.create(Moved("A"))

    async def execute() -> None:
        await asyncio.gather(
            *(
                Patient.logs.aexecute(state.log_id, lambda patient, n=n: [Admitted(n, f"n{n}")])
                for n in range(5)
            )
        )

    async_to_sync(execute)()

    names = [each.event.name for each in Patient.logs.load(state.log_id, start=1)]
    assert sorted(names) == [f"n{n}" for n in range(5)]
