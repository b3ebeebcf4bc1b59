"""A log behaves like a plain list that only grows, and its keys like a dict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run

from eventlogs import (
    ANY,
    ConcurrentAppend,
    IdempotencyKeyReused,
    IdempotentReplay,
    LogAlreadyExists,
    LogManager,
    LogNotFound,
    LogState,
    VersionNotReached,
)
from eventlogs.stores import BaseStore
from eventlogs.testing import MemoryStore
from eventlogs.testing.contracts.stores import new_key
from tests.accounts import Account, Deposited

amounts = st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4)


@dataclass
class Done:
    """The result of an append with a key."""

    creates: bool
    amounts: list[int]
    index: int
    state: LogState


class Unwanted(Exception):
    """An error that rolls a transaction back."""


class LogAgainstAList(RuleBasedStateMachine):
    store: BaseStore

    def __init__(self) -> None:
        super().__init__()
        self.accounts = LogManager(Account, store=self.store)
        self.log_id = self.accounts.new_id()
        self.model: list[int] = []
        self.keys: dict[str, Done] = {}
        self.states: list[LogState] = []

    def append(self, new: list[int], **options: Any) -> LogState:
        events = map(Deposited, new)
        if not self.model:
            options.pop("expected_version", None)
            return self.accounts.create(*events, log_id=self.log_id, **options)
        return self.accounts.append(
            self.log_id, *events, **{"expected_version": len(self.model), **options}
        )

    def appended(self, new: list[int], state: LogState) -> None:
        self.model += new
        assert (state.log_id, state.version) == (self.log_id, len(self.model))
        assert not self.states or state.position > self.states[-1].position
        self.states.append(state)

    @rule(new=amounts)
    def append_at_its_version(self, new):
        self.appended(new, self.append(new))

    @rule(new=amounts)
    def append_at_any_version(self, new):
        self.appended(new, self.append(new, expected_version=ANY))

    @rule(new=amounts)
    def append_with_a_new_key(self, new):
        key, creates, index = new_key(), not self.model, len(self.model)

        state = self.append(new, idempotency_key=key)

        self.appended(new, state)
        self.keys[key] = Done(creates, new, index, state)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), new=amounts)
    def append_at_a_wrong_version(self, data, new):
        expected = data.draw(st.integers(1, len(self.model) + 3))
        if expected == len(self.model):
            return
        key = data.draw(st.sampled_from([None, new_key()]))

        with pytest.raises(ConcurrentAppend) as caught:
            self.append(new, expected_version=expected, idempotency_key=key)

        assert caught.value.expected_version == expected
        assert caught.value.actual_version == len(self.model)

    @precondition(lambda self: self.model)
    @rule(new=amounts)
    def create_again(self, new):
        with pytest.raises(LogAlreadyExists) as caught:
            self.accounts.create(
                *map(Deposited, new), log_id=self.log_id, idempotency_key=new_key()
            )

        assert caught.value.actual_version == len(self.model)

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def replay(self, data):
        key = data.draw(st.sampled_from(list(self.keys)))
        done = self.keys[key]
        events = map(Deposited, done.amounts)
        expected = data.draw(st.sampled_from([ANY, done.index or 1, len(self.model)]))

        with pytest.raises(IdempotentReplay) as caught:
            if done.creates and data.draw(st.booleans()):
                self.accounts.create(*events, idempotency_key=key)
            else:
                self.accounts.append(
                    self.log_id, *events, expected_version=expected, idempotency_key=key
                )

        assert (caught.value.log_id, caught.value.index) == (self.log_id, done.index)
        assert caught.value.state == done.state

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), new=amounts)
    def reuse_a_key(self, data, new):
        key = data.draw(st.sampled_from(list(self.keys)))
        if new == self.keys[key].amounts:
            return

        with pytest.raises(IdempotencyKeyReused) as caught:
            self.append(new, idempotency_key=key)

        assert (caught.value.log_id, caught.value.index) == (self.log_id, self.keys[key].index)

    @precondition(lambda self: not isinstance(self.store, MemoryStore))
    @rule(new=amounts, key=st.booleans())
    def append_and_roll_back(self, new, key):
        with pytest.raises(Unwanted), transaction.atomic():
            state = self.append(new, idempotency_key=new_key() if key else None)
            assert state.version == len(self.model) + len(new)
            raise Unwanted

    @precondition(lambda self: not isinstance(self.store, MemoryStore))
    @rule(new=amounts)
    def be_refused_and_append_in_one_transaction(self, new):
        with transaction.atomic():
            if self.model:
                with pytest.raises(ConcurrentAppend):
                    self.append(new, expected_version=len(self.model) + 1)
            self.appended(new, self.append(new))

    @rule(data=st.data())
    def reduce_at_a_version(self, data):
        version = data.draw(st.integers(0, len(self.model) + 2))
        if 0 < version <= len(self.model):
            reduction = self.accounts.reduce(self.log_id, version=version)
            assert reduction.version == version
            assert reduction.aggregate.balance == sum(self.model[:version])
        else:
            error = VersionNotReached if version and self.model else LogNotFound
            with pytest.raises(error):
                self.accounts.reduce(self.log_id, version=version)

    @rule(data=st.data(), reverse=st.booleans(), limit=st.integers(1, 5))
    def read_a_page(self, data, reverse, limit):
        start = data.draw(st.none() | st.integers(0, len(self.model) + 2))
        indexes = list(range(len(self.model)))
        if reverse:
            wanted = indexes[: None if start is None else start + 1][::-1]
        else:
            wanted = indexes[start or 0 :]

        page = self.accounts.load(self.log_id, start=start, limit=limit, reverse=reverse)

        assert [record.index for record in page] == wanted[:limit]
        assert [record.event.amount for record in page] == [self.model[at] for at in wanted[:limit]]
        assert page.next_start == (wanted[limit] if len(wanted) > limit else None)

    @invariant()
    def the_log_is_the_list(self):
        records = list(self.accounts.stream(self.log_id))

        assert [record.event.amount for record in records] == self.model
        assert [record.index for record in records] == list(range(len(self.model)))
        assert self.accounts.version(self.log_id) == len(self.model)
        assert [record.position for record in records] == sorted(
            {record.position for record in records}
        )
        times = [record.recorded_at for record in records]
        assert times == sorted(times)

    @invariant()
    def its_reduction_is_the_sum(self):
        if self.model:
            reduction = self.accounts.reduce(self.log_id)
            assert (reduction.version, reduction.aggregate.balance) == (
                len(self.model),
                sum(self.model),
            )
            assert reduction.state == self.states[-1]


OPTIONS = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_a_log_behaves_like_a_list_that_only_grows(store, transactional_db):
    machine = type("Machine", (LogAgainstAList,), {"store": store})

    run(machine, settings=OPTIONS)


class ForgetsTheLastEvent(MemoryStore):
    """Loses an event of each batch of three."""

    def append(self, request: Any) -> LogState:
        state = super().append(request)
        if len(request.events) == 3:
            self._logs[request.log_id.uuid].events.pop()
        return state


def test_a_store_that_forgets_events_is_found():
    machine = type("Machine", (LogAgainstAList,), {"store": ForgetsTheLastEvent()})

    with pytest.raises(AssertionError):
        run(machine, settings=settings(OPTIONS, report_multiple_bugs=False))
