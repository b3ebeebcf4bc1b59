"""The domain of the tests of personal data: patients of a clinic."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from eventlogs import Aggregate, EventRecord, Personal, Unique, event


@dataclass(frozen=True, slots=True)
class Address:
    street: Annotated[str, Personal(subject="patient", redacted="erased", prefix="patient:")]
    town: str = ""


@event("patient.admitted")
@dataclass(frozen=True, slots=True)
class Admitted:
    patient: int
    name: Annotated[str, Personal(subject="patient", redacted="erased", prefix="patient:")]
    ward: str = "A"
    phone: Annotated[str | None, Personal(subject="patient", prefix="patient:")] = None
    address: Address | None = None
    notes: list[Annotated[str, Personal(subject="patient", redacted="", prefix="patient:")]] = (
        field(default_factory=list)
    )


@event("patient.moved")
@dataclass(frozen=True, slots=True)
class Moved:
    ward: str


@event("patient.noted")
@dataclass(frozen=True, slots=True)
class Noted:
    note: Any


@dataclass
class Patient(Aggregate, log_type="patient", events=[Admitted, Moved, Noted]):
    name: str = ""
    ward: str = ""
    names: list[str] = field(default_factory=list)

    def apply(self, record: EventRecord) -> None:
        match record.event:
            case Admitted(name=name, ward=ward):
                self.name, self.ward = name, ward
                self.names.append(name)
            case Moved(ward=ward):
                self.ward = ward


@event("guest.registered")
@dataclass(frozen=True, slots=True)
class Registered:
    guest: str
    email: Annotated[
        str | None, Unique("guest.email", normalize=str.casefold), Personal(subject="guest")
    ] = None


@dataclass
class Guest(Aggregate, log_type="guest", events=[Registered]):
    email: str | None = None

    def apply(self, record: EventRecord) -> None:
        self.email = record.event.email
