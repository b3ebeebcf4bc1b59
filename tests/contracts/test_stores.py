"""The stores of this package, each against the contract of stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
from django.utils.module_loading import import_string

from eventlogs.operations.chaining import ChainVerifier
from eventlogs.operations.verification import Scope
from eventlogs.stores import BaseStore, store_for
from eventlogs.stores.citus import CitusStore
from eventlogs.stores.portable import PortableStore
from eventlogs.testing import MemoryStore
from eventlogs.testing.contracts.restoring import RestoreContract
from eventlogs.testing.contracts.rows import RowContract
from eventlogs.testing.contracts.stores import StoreContract
from eventlogs.testing.contracts.transactions import (
    REFUSALS,
    REFUSALS_BY_RULES,
    Refused,
    TransactionContract,
)
from tests.contracts.rules import RestoredRulesContract, RulesContract

# The tables of other apps are empty, and take long to truncate.
autocommit = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])


@pytest.fixture(
    params=[
        pytest.param("autocommit", marks=autocommit),
        pytest.param("in a transaction", marks=pytest.mark.django_db),
    ]
)
def mode(request: pytest.FixtureRequest) -> str:
    """A test has either its own commits, or one transaction around it, that is rolled back."""
    return str(request.param)


@pytest.mark.sqlite
class TestMemoryStore(StoreContract, RestoreContract, RulesContract, RestoredRulesContract):
    @pytest.fixture
    def store(self) -> BaseStore:
        return MemoryStore()


class TestPortableStore(
    StoreContract, RowContract, RestoreContract, RulesContract, RestoredRulesContract
):
    @pytest.fixture
    def store(self, mode: str) -> BaseStore:
        return PortableStore("default")


@pytest.mark.postgresql
class TestPostgreSQLStore(
    StoreContract, RowContract, RestoreContract, RulesContract, RestoredRulesContract
):
    @pytest.fixture
    def store(self, mode: str) -> BaseStore:
        return store_for("default")


@pytest.fixture
def chaining(mode: str, settings) -> Iterator[None]:
    """New logs are chained, and all chains are whole when the test ends."""
    settings.EVENTLOGS = {"CHAIN": True}
    yield
    verifier = ChainVerifier()
    assert list(verifier.verify(Scope("default"))) == []
    assert verifier.unchained == 0


class TestPortableStoreChained(
    StoreContract, RowContract, RestoreContract, RulesContract, RestoredRulesContract
):
    @pytest.fixture
    def store(self, chaining: None) -> BaseStore:
        return PortableStore("default")


@pytest.mark.postgresql
class TestPostgreSQLStoreChained(
    StoreContract, RowContract, RestoreContract, RulesContract, RestoredRulesContract
):
    @pytest.fixture
    def store(self, chaining: None) -> BaseStore:
        return store_for("default")


@pytest.mark.postgresql
class TestPostgreSQLStoreWithoutPreparing(StoreContract, RowContract):
    @pytest.fixture
    def store(self, db: None, settings) -> BaseStore:
        settings.EVENTLOGS = {"PREPARED_STATEMENTS": False}
        return store_for("default")


@pytest.mark.postgresql
class TestPostgreSQLStoreWatched(StoreContract, RowContract, RulesContract):
    """While queries are watched, statements go through Django's cursor."""

    @pytest.fixture
    def store(self, db: None, django_assert_max_num_queries) -> Iterator[BaseStore]:
        with django_assert_max_num_queries(1_000):
            yield store_for("default")


@pytest.mark.postgresql
@pytest.mark.one_server
class TestGroupStore(StoreContract, RulesContract):
    """Appends that are joined with others."""

    @pytest.fixture
    def store(self, mode: str) -> BaseStore:
        # Without psycopg, the module cannot be imported.
        store: BaseStore = import_string("tests.stores.grouped.GroupStore")("default")
        return store


@autocommit
class TestPortableStoreInTransactions(TransactionContract):
    @pytest.fixture
    def store(self) -> BaseStore:
        return PortableStore("default")


@pytest.mark.postgresql
@pytest.mark.buckets
class TestCitusStore(
    StoreContract, RowContract, RestoreContract, RulesContract, RestoredRulesContract
):
    """On one server, its function does what it does on a node of Citus."""

    @pytest.fixture
    def store(self, mode: str) -> BaseStore:
        return CitusStore("default")


@autocommit
@pytest.mark.postgresql
@pytest.mark.buckets
class TestCitusStoreInTransactions(TransactionContract):
    @pytest.fixture
    def store(self) -> BaseStore:
        return CitusStore("default")

    @pytest.mark.parametrize("refusal", [*REFUSALS, *REFUSALS_BY_RULES])
    def test_a_refusal_takes_no_savepoint_and_raises_nothing_in_the_database(
        self, store: BaseStore, refusal: Callable[[BaseStore], Refused]
    ) -> None:
        """A refused create is taken back by one: a role may not delete the row of a log."""
        takes_one = "create" in refusal.__name__
        with pytest.raises(AssertionError, match="SAVEPOINT") if takes_one else nullcontext():
            super().test_a_refusal_takes_no_savepoint_and_raises_nothing_in_the_database(
                store, refusal
            )


@autocommit
@pytest.mark.postgresql
@pytest.mark.one_server
class TestPostgreSQLStoreInTransactions(TransactionContract):
    @pytest.fixture
    def store(self) -> BaseStore:
        return store_for("default")
