"""Public callables: an optional argument is passed by its name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from importlib import import_module
from typing import Any

import msgspec
import pytest
from django.db import models

PUBLIC = [
    *["eventlogs", "eventlogs.models", "eventlogs.caches", "eventlogs.projections"],
    *["eventlogs.testing", "eventlogs.stores", "eventlogs.stores.base", "eventlogs.refreshers"],
    *["eventlogs.operations.health", "eventlogs.operations.erasure", "eventlogs.operations.jsonl"],
    "eventlogs.contrib.prometheus.collector",
    *["eventlogs.reductions.sweeps", "eventlogs.projections.workers", "eventlogs.policies"],
    "eventlogs.contrib.http",
]

# Optional arguments that may be passed by position, by the names of callable and argument.
THE_OBJECT = "what the call is about; None is all of them"
ALLOWED = {
    ("retry", "log_id"): THE_OBJECT,
    ("rebuild", "log_id"): THE_OBJECT,
    ("aretry", "log_id"): THE_OBJECT,
    ("arebuild", "log_id"): THE_OBJECT,
    ("run", "names"): THE_OBJECT,
    ("Worker", "names"): THE_OBJECT,
    ("chosen", "names"): THE_OBJECT,
    ("refresher_for", "refresher"): THE_OBJECT,
    ("Problems", "table"): "what the object consists of",
    ("refresh_by_names", "cache"): "the message of a task, whose arguments are a list",
}


def is_ours(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).split(".")[0] == "eventlogs"


def is_value(cls: type) -> bool:
    """Return whether a class consists of fields, which have an order, or of members."""
    is_record = is_dataclass(cls) and not issubclass(cls, Exception)
    return is_record or issubclass(cls, tuple | msgspec.Struct | models.Model | Enum)


def is_written_in_python(thing: Any) -> bool:
    return inspect.isfunction(thing) or inspect.ismethod(thing)


def callables_of(module: str) -> Iterator[Any]:
    """Yield the public functions of a module, and its public classes with their methods."""
    there = import_module(module)
    own = [
        each for each, value in vars(there).items() if getattr(value, "__module__", "") == module
    ]
    for name in getattr(there, "__all__", own):
        thing = getattr(there, name)
        if name[0] == "_" or not is_ours(thing) or not callable(thing):
            continue
        if not inspect.isclass(thing):
            yield thing
            continue
        if not is_value(thing):
            yield thing
        managers = thing._meta.managers if issubclass(thing, models.Model) else []
        querysets = [type(each.all()) for each in managers]
        for cls in {thing, *map(type, managers), *querysets}:
            for attribute, method in inspect.getmembers(cls, is_written_in_python):
                if attribute[0] != "_" and is_ours(method):
                    yield method


FOUND = {f"{each.__module__}.{each.__qualname__}": each for m in PUBLIC for each in callables_of(m)}


def by_position(thing: Any) -> list[str]:
    """Return the names of the optional arguments that can be passed by position."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except ValueError:  # a class written in C that takes none
        return []
    return [
        each.name
        for each in parameters
        if each.default is not each.empty and each.kind is not each.KEYWORD_ONLY
    ]


def test_optional_arguments_are_keyword_only():
    found = {
        f"{name}: {argument}"
        for name, each in FOUND.items()
        for argument in by_position(each)
        if (each.__name__, argument) not in ALLOWED
    }

    assert found == set()


@pytest.mark.parametrize(
    "name",
    [
        "eventlogs.contrib.http.change_requests.ChangeRequest.aexecute",
        "eventlogs.feed.reader.Feed.read",
        "eventlogs.feed.reader.Feed.afollow",
        "eventlogs.logs.LogManager",
        "eventlogs.logs.LogManager.areduce",
        "eventlogs.managers.EventLogManager.append",
        "eventlogs.managers.IdempotencyKeyQuerySet.prune",
        "eventlogs.operations.health.health",
    ],
)
def test_all_kinds_of_callables_are_checked(name):
    assert name in FOUND


def test_an_optional_argument_by_position_would_be_seen():
    def call(one: int, two: int = 2, *, three: int = 3) -> None: ...

    assert by_position(call) == ["two"]
