"""Constraints of read models: checked before the COMMIT, and named in errors."""

from __future__ import annotations

import pickle

import pytest
from django.db import IntegrityError, models, transaction
from django.db.models.functions import Lower

from eventlogs import (
    ConstraintViolated,
    LogIdField,
    LogNotFound,
    Projection,
    ProjectionFailed,
    handles,
    projection,
)
from eventlogs.models import ParkedEvent
from eventlogs.projections import constraints
from tests.accounts import Account, Deposited, Noted, Opened
from tests.projections.readmodels import until
from tests.projections.tables import Known, made
from tests.tables import Table

pytestmark = pytest.mark.django_db(transaction=True)


class Owner(Table):
    name = models.CharField(max_length=20, primary_key=True)

    class Meta:
        app_label = "tests_of_constraints"

    def __str__(self):
        return self.name


class Car(Table):
    log_id = LogIdField(primary_key=True)
    owner = models.ForeignKey(
        Owner, null=True, on_delete=models.CASCADE, related_name="+", db_column="owned_by"
    )
    plate = models.CharField(max_length=20, null=True, unique=True)  # type: ignore[misc]  # noqa: DJ001
    label = models.CharField(max_length=20, default="")
    sold = models.IntegerField(default=0)
    seats = models.PositiveIntegerField(default=0)
    place = models.CharField(max_length=20, null=True)  # type: ignore[misc]  # noqa: DJ001

    class Meta:
        app_label = "tests_of_constraints"
        constraints = [
            models.CheckConstraint(condition=models.Q(sold__lte=100), name="car_is_sold_once"),
            models.UniqueConstraint(
                Lower("label"), "sold", name="car_label", condition=~models.Q(label="")
            ),
            models.UniqueConstraint(
                fields=["place"], name="car_place", deferrable=models.Deferrable.DEFERRED
            ),
        ]

    def __str__(self):
        return str(self.log_id)


class Plain(models.Model):
    log_id = LogIdField(primary_key=True)

    class Meta:
        app_label = "tests_of_constraints"

    def __str__(self):
        return str(self.log_id)


class Other(Table):
    """A model of the caller, in the same transaction."""

    owner = models.ForeignKey(Owner, on_delete=models.CASCADE, related_name="+")

    class Meta:
        app_label = "tests_of_constraints"

    def __str__(self):
        return str(self.pk)


class Cars(Projection):
    log_types = ["account"]
    model = Car
    max_attempts = 2
    backoff = 60.0

    @handles(Opened)
    def opened(self, row, record):
        row.owner_id = record.event.owner

    @handles(Noted)
    def noted(self, row, record):
        for name, value in record.event.note.items():
            setattr(row, name, value)

    @handles(Deposited)
    def deposited(self, row, record):
        row.sold += record.event.amount


@projection("cars")
class AsyncCars(Cars):
    pass


@projection("inline-cars")
class InlineCars(Cars):
    mode = Projection.INLINE


KNOWN = Known(AsyncCars, InlineCars)
DEFERRABLE_UNIQUE = pytest.mark.postgresql  # SQLite has no deferrable unique constraints


@pytest.fixture(autouse=True)
def _tables(transactional_db):
    with made(Owner, Car, Plain, Other):
        yield


@pytest.fixture
def inlined():
    with KNOWN.declared("inline-cars"):
        yield


CASES = {
    "check": (Deposited(101), "car_is_sold_once", ("sold",)),
    "foreign key": (Opened("nobody"), ..., ("owner",)),
    "unique field": (Noted({"plate": "A 1"}), ..., ("plate",)),
    "unique expression": (Noted({"label": "VAN", "sold": 5}), "car_label", ("label", "sold")),
    "positive": (Noted({"seats": -1}), ..., ("seats",)),
    "deferrable unique": (Noted({"place": "left"}), "car_place", ("place",)),
}
SOME = [
    pytest.param(*case, id=name, marks=DEFERRABLE_UNIQUE if name == "deferrable unique" else ())
    for name, case in CASES.items()
]


@pytest.mark.parametrize(("event", "constraint", "fields"), SOME)
@pytest.mark.usefixtures("inlined")
def test_a_violated_constraint_is_named_and_the_callers_transaction_stays_usable(
    event, constraint, fields
):
    Account.logs.create(Noted({"plate": "A 1", "label": "van", "sold": 5, "place": "left"}))
    log_id = Account.logs.new_id()
    for in_transaction in (False, True):
        with pytest.raises(ConstraintViolated) as caught:
            if in_transaction:
                with transaction.atomic():
                    try:
                        Account.logs.create(event, log_id=log_id)
                    except ProjectionFailed as error:
                        Owner.objects.create(name="beside")
                        refused = error
                raise refused
            Account.logs.create(event, log_id=log_id)
        raised = caught.value
        if constraint is not ...:
            assert raised.constraint == constraint
        assert raised.fields == fields
        assert (raised.projection, raised.log_id) == ("inline-cars", log_id)
        assert isinstance(raised.__cause__, IntegrityError)
        assert "correct its handler" not in str(raised)
        assert not any(secret in str(raised) for secret in ("A 1", "VAN", "nobody", "left", "101"))
        again = pickle.loads(pickle.dumps(raised))
        assert (again.constraint, again.fields, str(again)) == (
            raised.constraint,
            raised.fields,
            str(raised),
        )
    assert Owner.objects.filter(name="beside").exists()
    with pytest.raises(LogNotFound):
        Account.logs.reduce(log_id)


@pytest.mark.usefixtures("inlined")
def test_a_missing_value_is_an_error_of_the_handler():
    with pytest.raises(ProjectionFailed) as caught:
        Account.logs.create(Noted({"sold": None}))

    assert not isinstance(caught.value, ConstraintViolated)
    assert "correct its handler" in str(caught.value)


@pytest.mark.usefixtures("inlined")
def test_a_deferred_violation_that_the_caller_corrects_is_accepted():
    with transaction.atomic():
        Other.objects.create(owner_id="later")  # a foreign key that is broken for a moment
        state = Account.logs.create(Deposited(1))
        Owner.objects.create(name="later")

    assert Car.objects.get().log_id == state.log_id


@pytest.mark.usefixtures("inlined")
def test_a_foreign_key_to_a_row_of_the_same_transaction_is_accepted():
    with transaction.atomic():
        Owner.objects.create(name="Ada")
        Account.logs.create(Opened("Ada"))

    assert Car.objects.get().owner_id == "Ada"  # type: ignore[attr-defined]


def test_an_event_whose_row_breaks_a_foreign_key_is_parked_with_its_real_error_and_attempts():
    ada = Account.logs.create(Opened("nobody"), Deposited(1))
    bob = Account.logs.create(Deposited(2))
    AsyncCars.catch_up()
    until(lambda: AsyncCars.catch_up() or AsyncCars.parked())

    [parked] = AsyncCars.parked()
    assert (parked.error, parked.attempts, parked.index) == ("IntegrityError", 2, 0)
    assert list(Car.objects.values_list("log_id", "sold")) == [(bob.log_id, 2)]

    Owner.objects.create(name="nobody")
    AsyncCars.retry(ada.log_id)
    AsyncCars.catch_up()
    assert Car.objects.get(pk=ada.log_id).sold == 1
    assert not ParkedEvent.objects.exists()


def test_a_failure_at_the_commit_is_recorded_with_its_real_error(monkeypatch):
    """Without the check of deferred constraints, as for one that the model does not know of."""
    monkeypatch.setattr("eventlogs.projections.rows.check_deferred", lambda *args: None)
    Account.logs.create(Opened("nobody"), Deposited(1))
    AsyncCars.catch_up()
    until(lambda: AsyncCars.catch_up() or AsyncCars.parked())

    [parked] = AsyncCars.parked()
    assert (parked.error, parked.attempts, parked.index) == ("IntegrityError", 2, 0)


def test_a_rebuild_says_which_event_a_constraint_refuses():
    Owner.objects.create(name="Ada")
    state = Account.logs.create(Opened("Ada"), Deposited(1))
    AsyncCars.catch_up()
    Car.objects.update(owner=None)
    Owner.objects.all().delete()

    with pytest.raises(ConstraintViolated) as caught:
        AsyncCars.rebuild()
    assert (caught.value.log_id, caught.value.fields) == (state.log_id, ("owner",))
    with pytest.raises(ConstraintViolated):
        AsyncCars.rebuild(state.log_id)
    assert Car.objects.get().sold == 1

    Owner.objects.create(name="Ada")
    AsyncCars.rebuild()
    assert Car.objects.get().owner_id == "Ada"  # type: ignore[attr-defined]


def test_a_model_without_such_constraints_costs_no_query(django_assert_num_queries):
    with django_assert_num_queries(0):
        constraints.check_deferred(Plain, [Plain()], "default")


def test_other_errors_are_no_violated_constraints():
    assert not constraints.refuses(None)
    assert not constraints.refuses(ValueError())
    assert not constraints.refuses(IntegrityError("what?"))


class MariaDBs(IntegrityError):
    """As mysqlclient's errors come through Django."""


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((1062, "Duplicate entry 'x' for key 'y' for key 'cars.car_place'"), "car_place"),
        ((4025, "CONSTRAINT `car_is_sold_once` failed for `db`.`car`"), "car_is_sold_once"),
        ((3819, "Check constraint 'car_is_sold_once' is violated."), "car_is_sold_once"),
        (
            (1452, "Cannot add a child row: fails (`db`.`car`, CONSTRAINT `fk` FOREIGN KEY (`a`)"),
            "fk",
        ),
    ],
)
def test_the_name_of_a_constraint_is_read_from_an_error_of_mariadb(arguments, name):
    error = MariaDBs(*arguments)

    assert constraints.refuses(error)
    assert constraints.violated(error, Car, "default").constraint == name
