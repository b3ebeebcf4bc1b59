"""Read models of guests, of each kind; they are declared where a test asks for it."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from eventlogs import LogIdField, Projection, ReductionProjection, handles, projection
from tests.guests import Complained, Guest, Joined
from tests.projections.tables import Known
from tests.tables import Table


class HasName(Table):
    log_id = LogIdField(primary_key=True)
    name = models.CharField(max_length=50, default="")

    class Meta:
        abstract = True
        app_label = "tests_of_forgetting"

    def __str__(self):
        return self.name


class Named(HasName):
    pass


class InlineNamed(HasName):
    pass


class ReducedNamed(HasName):
    pass


class ByName(Table):
    name = models.CharField(max_length=50, primary_key=True)

    class Meta:
        app_label = "tests_of_forgetting"

    def __str__(self):
        return self.name


class Names(Projection):
    log_types = ["visitor"]
    max_attempts = 1

    @handles(Joined)
    def joined(self, row, record):
        row.name = record.event.name

    @handles(Complained)
    def complained(self, row, record):
        raise ValueError(f"{row.name} says {record.event.text}")


@projection("guests-names")
class AsyncNames(Names):
    model = Named


@projection("guests-inline")
class InlineNames(Projection):
    log_types = ["visitor"]
    model = InlineNamed
    mode = Projection.INLINE
    refuses: ClassVar[set[str]] = set()  # names with which it cannot make a row

    @handles(Joined)
    def joined(self, row, record):
        if record.event.name in self.refuses:
            raise ValueError("refused")
        row.name = record.event.name


@projection("guests-reduced")
class ReducedNames(ReductionProjection):
    aggregate = Guest
    model = ReducedNamed


@projection("guests-shared")
class SharedNames(Projection):
    log_types = ["visitor"]
    model = ByName

    def key(self, record):
        return record.event.name

    @handles(Joined)
    def joined(self, row, record):
        pass


EACH = (AsyncNames, InlineNames, ReducedNames)
MODELS = (Named, InlineNamed, ReducedNamed, ByName)
KNOWN = Known(*EACH, SharedNames)
