"""
The fingerprint of an aggregate: a digest of everything that its state follows from.

It is part of the key under which a reduction is cached, so that state which was folded by
other code is never met, not even while two releases run side by side.

It is taken from the code that this process *runs* (bytecode, constants, fields), not from the
source files: those may already be the next release's while this one still works. Functions,
classes and UPPER_CASE constants that the code names are followed, as long as they belong to
the project; what lies in the standard library or among installed packages is not, and
neither is what the code reaches in other ways (a table, a setting). For changes there, raise
``version=`` on the aggregate. Another Python release compiles to other bytecode, and so has
fingerprints of its own.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterable
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any, Final
from uuid import UUID
from weakref import WeakKeyDictionary

import msgspec
from msgspec import inspect as types

from eventlogs.aggregates import Aggregate
from eventlogs.events import EventType, registry

PLAIN: Final = (type(None), bool, int, float, complex, str, bytes, Decimal, date, time, timedelta)
PLAIN_TOO: Final = (UUID, type(Ellipsis), Fraction, range, slice, tzinfo)
# What classes have by themselves, or have from what is digested anyway.
SKIPPED: Final = frozenset(
    {
        *vars(type("_", (), {})),
        *(
            "__annotations__",
            "__annotate_func__",
            "__annotations_cache__",
            "__conditional_annotations__",
        ),
        *("__parameters__", "__orig_bases__", "__firstlineno__", "__static_attributes__"),
        *(
            "__abstractmethods__",
            "_abc_impl",
            "__slots__",
            "__dataclass_params__",
            "__match_args__",
        ),
        "__repr__",
        "__msgspec_cache__",  # set when the class is first encoded or decoded
    }
)
ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")
INSTALLED: Final = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)

_known: WeakKeyDictionary[type[Aggregate], str] = WeakKeyDictionary()


def fingerprint(aggregate: type[Aggregate]) -> str:
    """Return the fingerprint of an aggregate class: 32 hexadecimal digits."""
    known = _known.get(aggregate)
    if known is None:
        known = _known[aggregate] = _Digest(aggregate).hexdigest()
    return known


class _Digest:
    """A walk over an aggregate's code that writes down all it meets, once each."""

    def __init__(self, aggregate: type[Aggregate]) -> None:
        self._sha = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # alive for as long as their ids are in _seen
        self._roots = {
            _root(cls.__module__)
            for cls in (aggregate, *(event_type.cls for event_type in aggregate.event_types))
        }
        self._write("aggregate", aggregate.__module__, aggregate.__qualname__)
        self._write("version", str(aggregate.aggregate_version))
        self._class(aggregate)
        for event_type in aggregate.event_types:
            self._event(event_type)
        self._types([aggregate, *(event_type.cls for event_type in aggregate.event_types)])

    def hexdigest(self) -> str:
        return self._sha.hexdigest()[:32]

    def _write(self, *texts: str) -> None:
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            self._sha.update(b"%d:" % len(data))
            self._sha.update(data)

    def _event(self, event_type: EventType) -> None:
        self._write("event", *event_type.names, str(event_type.version))
        self._value(event_type.cls)
        for version in range(1, event_type.version):
            self._value(registry.upcaster(event_type.names, version))

    def _types(self, classes: list[type]) -> None:
        """Follow the classes that fields are declared with, however deep."""
        try:
            infos: list[Any] = [types.type_info(cls) for cls in classes]
        except (TypeError, NameError, AttributeError):
            return  # such an aggregate cannot be cached
        seen: set[int] = set()
        while infos:
            info = infos.pop()
            if isinstance(info, list | tuple):
                infos.extend(info)
            elif isinstance(info, types.Type | types.Field) and id(info) not in seen:
                seen.add(id(info))
                self._kept.append(info)
                infos.extend(getattr(info, name) for name in info.__struct_fields__)
                if isinstance(cls := getattr(info, "cls", None), type):
                    self._value(cls)

    def _value(self, value: Any) -> None:
        if isinstance(value, enum.Enum):
            self._write("member", type(value).__qualname__, value.name)
            self._value(value.value)
        elif isinstance(value, PLAIN + PLAIN_TOO):
            self._write(type(value).__name__, repr(value))
        elif id(value) in self._seen:
            self._write("again", str(self._seen[id(value)]))
        else:
            self._seen[id(value)] = len(self._seen)
            self._kept.append(value)
            self._compound(value)

    def _compound(self, value: Any) -> None:
        if isinstance(value, CodeType):
            self._code(value)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, type):
            if self._is_followed(value.__module__):
                self._class(value)
            else:
                self._write("class", value.__module__, value.__qualname__)
        elif isinstance(value, tuple | list):
            self._write(type(value).__name__, str(len(value)))
            self._values(value)
        elif isinstance(value, dict | MappingProxyType):
            self._write("dict", str(len(value)))
            self._values(part for item in value.items() for part in item)
        elif isinstance(value, set | frozenset):
            # Their order changes from process to process.
            self._write(type(value).__name__, *sorted(map(repr, value)))
        elif isinstance(value, property):
            self._write("property")
            self._values((value.fget, value.fset, value.fdel))
        elif isinstance(value, staticmethod | classmethod | MethodType):
            self._write("static" if isinstance(value, staticmethod) else "method")
            self._value(value.__func__)
        elif isinstance(value, functools.partial):
            self._write("partial")
            self._values((value.func, value.args, value.keywords))
        elif isinstance(value, functools.cached_property):
            self._write("cached_property")
            self._value(value.func)
        elif isinstance(value, dataclasses.Field):
            declared = ADDRESS.sub("", str(value.type))
            self._write("field", str(value.name), declared, str(value.init))
            self._values((value.default, value.default_factory))
        elif isinstance(value, functools.singledispatchmethod):
            self._write("dispatch")
            self._values((value.func, value.dispatcher.registry))
        elif isinstance(value, re.Pattern):
            self._write("pattern", repr(value.pattern), str(value.flags))
        elif isinstance(value, BuiltinFunctionType):
            self._write("builtin", str(value.__module__), value.__qualname__)
        elif dataclasses.is_dataclass(value) or isinstance(value, msgspec.Struct):
            self._value(type(value))
            self._values(_state(value))
        else:
            self._write("a", type(value).__module__, type(value).__qualname__)
            self._value(getattr(value, "__dict__", {}).get("__wrapped__"))

    def _values(self, values: Iterable[Any]) -> None:
        for value in values:
            self._value(value)

    def _class(self, cls: type) -> None:
        for base in cls.__mro__:
            self._write("class", base.__module__, base.__qualname__)
            if base is Aggregate or not self._is_followed(base.__module__):
                continue
            for name, value in sorted(vars(base).items()):
                if name not in SKIPPED:
                    self._write(name)
                    self._value(value)
        if issubclass(cls, msgspec.Struct):
            self._write(*cls.__struct_fields__)
            self._values(cls.__struct_defaults__)

    def _function(self, function: FunctionType) -> None:
        self._write("function", function.__qualname__)
        self._value(function.__code__)
        self._values((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                self._value(cell.cell_contents)
            except ValueError:  # the cell is empty
                self._write("empty")
        names = _names(function.__code__)
        for name in names:
            if name not in function.__globals__:
                continue
            self._named(name, function.__globals__[name], names)

    def _named(self, name: str, value: Any, names: list[str]) -> None:
        """Follow what code refers to by a name, unless it may change while a process runs."""
        if isinstance(value, ModuleType):
            if self._is_followed(value.__name__) and id(value) not in self._seen:
                self._seen[id(value)] = len(self._seen)
                for inside in names:
                    if inside in vars(value):
                        self._named(inside, vars(value)[inside], names)
                del self._seen[id(value)]  # other code may name other things in it
        elif isinstance(value, FunctionType | type):
            if self._is_followed(value.__module__):
                self._write("name", name)
                self._value(value)
        elif name.isupper() or _is_table_of_code(value):
            self._write("name", name)
            self._value(value)

    def _code(self, code: CodeType) -> None:
        self._write("code", code.co_code.hex(), str(code.co_flags))
        self._write(code.co_exceptiontable.hex())  # what stands within a try, and what after it
        self._write(str(code.co_argcount), str(code.co_posonlyargcount))
        self._write(str(code.co_kwonlyargcount))
        self._write(*code.co_names, "/", *code.co_varnames, "/", *code.co_freevars)
        self._values(code.co_consts)

    def _is_followed(self, module: str) -> bool:
        root = _root(module)
        if root in self._roots:
            return True
        if root == _root(__name__):
            return False  # also where it is not installed: a checkout
        if root in sys.stdlib_module_names:
            return False
        place = getattr(sys.modules.get(root), "__file__", None)
        if place is None:
            # A namespace package, or made up at run time: the module itself may tell.
            place = getattr(sys.modules.get(module), "__file__", None)
        return place is not None and not place.startswith(INSTALLED)


def _root(module: str) -> str:
    return module.partition(".")[0]


def _is_table_of_code(value: Any) -> bool:
    """Return whether a value is a dict of functions or classes: handlers, say."""
    return (
        isinstance(value, dict | MappingProxyType)
        and bool(value)
        and all(isinstance(each, FunctionType | type) for each in value.values())
    )


def _state(value: Any) -> list[Any]:
    names = getattr(value, "__struct_fields__", None) or [
        field.name for field in dataclasses.fields(value)
    ]
    return [getattr(value, name, None) for name in names]


def _names(code: CodeType) -> list[str]:
    """Return the names that code looks up, that of functions inside of it included."""
    names = dict.fromkeys(code.co_names)
    for const in code.co_consts:
        if isinstance(const, CodeType):
            names.update(dict.fromkeys(_names(const)))
    return list(names)
