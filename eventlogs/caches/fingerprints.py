"""
The code fingerprint of an aggregate: a digest of all code that its state depends on.

It is part of the key under which a reduction is cached. So no process reads a state that other
code has folded, not even while two releases run side by side. Equal code has the same
fingerprint in every process. It is a digest of

- the modules of the *project*, whole, that the aggregate, its events and their upcasters can
  reach by imports (wherever those stand), and those whose functions or classes the modules'
  names hold, because something registered or replaced them there;
- the *distributions* (installed packages) that these modules import, and what those require:
  by version, and by the digests of their files in RECORD
  (https://packaging.python.org/en/latest/specifications/recording-installed-packages/);
- Python's version, the names, versions and fields of the events, and the declared ``version=``.

A module belongs to the project if no RECORD lists its file, if its distribution was not
installed from an index (PEP 610: from a path, a repository, a URL), or if an aggregate, event
or upcaster is in that distribution.

An aggregate whose code cannot be known has no fingerprint, and is not cached; ``why_unknown``
says why. Modules are digested from their files, so those must be the files that were loaded
(``eventlogs.utils.loaded_modules``). Whole modules count, because following single functions
missed 23 of 48 kinds of change.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pkgutil
import platform
import re
import sys
import typing
import weakref
from collections import deque
from collections.abc import Iterator
from gc import get_referents
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CellType, FunctionType, MappingProxyType, MethodType, ModuleType, SimpleNamespace
from typing import Any, Final, NamedTuple

import eventlogs
from eventlogs.aggregates import Aggregate
from eventlogs.events.registry import EventType, registry
from eventlogs.utils import distributions, loaded_modules, sources
from eventlogs.utils.distributions import Distribution
from eventlogs.utils.loaded_modules import State
from eventlogs.utils.names import dotted
from eventlogs.utils.sources import COMPILED, Source, Unknown

OURS: Final = "eventlogs"
STDLIB: Final = str(Path(os.__file__).parent)
INSTALLED: Final = ("site-packages", "dist-packages")
ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")

# Objects of these types are searched for functions and classes that they hold for others to call.
HOLDERS: Final = (
    *(dict, list, tuple, set, frozenset, deque, MappingProxyType, SimpleNamespace),
    *(property, staticmethod, classmethod, CellType, MethodType),
)
# … and of the types that these modules define.
HOLDING: Final = {"functools", "collections", "weakref", "_weakrefset"}
CACHED: Final = type(functools.cache(len))
ATOMS: Final = {str, bytes, int, float, bool, type(None)}


Step = tuple[str, frozenset[str], frozenset[str]]
"""A module, names in it that may be modules too, and names that may be modules inside of those."""


class Answer(NamedTuple):
    """The fingerprint of an aggregate, or why it has none, and what that depends on."""

    fingerprint: str | None
    walked: frozenset[str]  # the modules of the project that it includes
    why_unknown: str | None
    registered: tuple[int, int]
    loaded: frozenset[str]  # the modules that were loaded at that time
    number: int  # of them, or a later one if no module that matters was loaded in between
    unloaded: dict[str, State]  # files that may be loaded later, by path

    def is_current(self) -> bool:
        """Return whether nothing has happened since that may change it."""
        return (
            self.number == len(sys.modules)
            and self.registered == registry.revision
            and all(loaded_modules.state_of(path) == state for path, state in self.unloaded.items())
        )


def code_fingerprint(aggregate: type[Aggregate]) -> str | None:
    """Return the fingerprint of an aggregate class, or None where its code cannot be known."""
    return _answer(aggregate).fingerprint


def why_unknown(aggregate: type[Aggregate]) -> str | None:
    """Return why an aggregate class has no fingerprint, or None."""
    return _answer(aggregate).why_unknown


def covers(aggregate: type[Aggregate], name: str) -> bool:
    """
    Return whether the fingerprint includes the class and upcasters of a stored event type.

    It does so for the types that the aggregate names, and for those in a module that it reaches.
    """
    event_type = registry.by_name(name)
    if event_type is None or event_type in aggregate.event_types:
        return event_type is not None
    answer = _answer(aggregate)
    if answer.fingerprint is None or _misplaced(event_type.cls) is not None:
        return False
    homes = {base.__module__ for base in event_type.cls.__mro__} | _upcaster_homes(event_type)
    return all(home in answer.walked or _is_stdlib(home) for home in homes)


def _answer(aggregate: type[Aggregate]) -> Answer:
    answer = _answers.get(aggregate)
    if answer is not None and answer.is_current():
        return answer
    loaded_modules.look()
    registered, loaded = registry.revision, _loaded(len(sys.modules))
    if answer is not None:
        later = answer._replace(number=len(loaded))
        if later.is_current() and not any(map(_matters, loaded - answer.loaded)):
            _answers[aggregate] = later
            return later
    walk, fingerprint, why = _Walk(), None, None
    try:
        fingerprint = walk.fingerprint(aggregate)
    except Unknown as error:
        why = str(error)
    except Exception as error:  # of a finder, a lazy module, an odd object: no error for a reader
        why = f"looking for it failed with {type(error).__name__}"
    answer = _answers[aggregate] = Answer(
        fingerprint,
        frozenset(walk.walked),
        why,
        registered,
        loaded,
        len(loaded),
        walk.unloaded,
    )
    return answer


@functools.lru_cache(maxsize=1)
def _loaded(count: int) -> frozenset[str]:
    """Return the names of the modules that are loaded; all aggregates share one set of them."""
    return frozenset(sys.modules)


def _matters(name: str) -> bool:
    """Return whether a module that was loaded later may change what a walk found."""
    return _is_project(name) or loaded_modules.is_doubtful(name)


class _Walk:
    """A walk over the modules that an aggregate's code can reach."""

    def __init__(self) -> None:
        self.unloaded: dict[str, State] = {}
        self.walked: set[str] = set()
        self._digests: dict[str, str] = {}  # of modules and distributions, by name
        self._imported: set[str] = set()  # of other distributions; their imports are not followed
        self._own: set[Path] = set()  # the distributions that are walked through
        self._queue: list[Step] = []

    def fingerprint(self, aggregate: type[Aggregate]) -> str:
        """Return the fingerprint of an aggregate class. Raise Unknown."""
        classes = [aggregate, *(event_type.cls for event_type in aggregate.event_types)]
        for cls in classes:
            if (why := _misplaced(cls)) is not None:
                raise Unknown(why)
        roots = {cls.__module__ for cls in classes}
        for event_type in aggregate.event_types:
            roots |= _upcaster_homes(event_type)
        for root in roots:
            path = loaded_modules.file_of(root, _spec(root))
            if path is not None and (found := distributions.of_file(path)) is not None:
                self._own.add(found.info)
                if not found.is_local:  # its RECORD counts modules that no import leads to
                    self._take(found)
        self._walk(roots | {base.__module__ for cls in classes for base in cls.__mro__})
        self._require(OURS)
        sha = hashlib.sha256()
        for text in (
            f"eventlogs {eventlogs.__version__}",
            f"{platform.python_implementation()} {platform.python_version()}",
            f"{dotted(aggregate)} {aggregate.aggregate_version}",
            *(_registration(event_type) for event_type in aggregate.event_types),
            *(line for cls in classes for line in _fields(cls)),
            *(f"{name} {digest}" for name, digest in sorted(self._digests.items())),
        ):
            sha.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))
        return sha.hexdigest()[:32]

    def _walk(self, names: set[str]) -> None:
        tried: set[str] = set()
        done: set[Step] = set()
        while names:
            tried |= names
            self._queue.extend((name, frozenset(), frozenset()) for name in sorted(names))
            while self._queue:
                step = self._queue.pop()
                if step not in done:
                    done.add(step)
                    self._reach(step[0])
                    self._descend(*step)
            names = _held(self.walked) - tried

    def _reach(self, name: str) -> None:
        """Walk through a module, and, as an import does, through the packages that it is in."""
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            if not self._enter(".".join(parts[:end])):
                return

    def _enter(self, name: str) -> bool:
        """Digest a module, once, and queue what it imports; return whether it is there."""
        if name in self.walked or name in self._imported:
            return True
        if name == OURS or _is_stdlib(name):
            return False
        spec = _spec(name)
        if spec is None and sys.modules.get(name) is None:
            self._digests[name] = "is not there"
            return False
        if spec is not None and spec.origin is None and spec.submodule_search_locations is not None:
            self.walked.add(name)  # a namespace package is no more than a name
            return True
        path = loaded_modules.file_of(name, spec)
        if path is None:
            raise Unknown(f"the module {name} has no file that can be read")
        distribution = distributions.of_file(path)
        is_own = (
            distribution is None or distribution.is_local or distribution.info in self._own
        ) and not (distribution and path.endswith(COMPILED))
        source = self._read(name, path, spec, follow=is_own)
        self._digests[name] = source.digest
        if not is_own:
            self._imported.add(name)
            self._take(distribution)
            return True
        self.walked.add(name)
        if source.dynamic is not None:
            raise Unknown(
                f"line {source.dynamic} of the module {name} runs code that is only known at "
                f"run time"
            )
        for target, names in source.imports:
            self._queue.append((target, names, source.attributes))
        return True

    def _descend(self, package: str, names: frozenset[str], attributes: frozenset[str]) -> None:
        """Walk through the modules inside of a package that are imported or named from it."""
        if package in self.walked or package in self._imported:
            inside = _submodules(package)
            found = inside if "*" in names else inside & names
            for name in found | {each for each in names if f"{package}.{each}" in sys.modules}:
                self._queue.append((f"{package}.{name}", attributes, attributes))

    def _read(self, name: str, path: str, spec: ModuleSpec | None, *, follow: bool) -> Source:
        """Return what a module's file says, if it is known to be the file that was loaded."""
        if (settled := _settled.get((name, follow))) is not None:
            return settled
        state, is_loaded = loaded_modules.state_of(path), sys.modules.get(name) is not None
        if is_loaded and (state != loaded_modules.loaded(name) or state == loaded_modules.CHANGED):
            raise Unknown(f"the file of the module {name} changed after it was loaded")
        known = _sources.get((name, follow))
        if known is None or known[0] != state:
            known = _sources[name, follow] = state, sources.read(name, path, spec, follow=follow)
        if loaded_modules.state_of(path) != state:
            raise Unknown(f"the file of the module {name} is being changed")
        if is_loaded:
            _settled[name, follow] = known[1]
        else:
            self.unloaded[path] = state
        return known[1]

    def _take(self, distribution: Distribution | None) -> None:
        """Digest a distribution's RECORD, and those of the distributions that it requires."""
        if distribution is None or (name := distribution.name) in self._digests:
            return
        if not loaded_modules.is_older_than_process(str(distribution.info / "RECORD")):
            raise Unknown(f"the distribution {name} changed after this process began")
        self._digests[name] = distribution.digest
        for required in distribution.requires:
            self._require(required)

    def _require(self, name: str) -> None:
        if (distribution := distributions.installed(name)) is not None:
            self._take(distribution)


def _misplaced(cls: type) -> str | None:
    """Return why a class may be another than the one in its module's source, or None."""
    found: Any = sys.modules.get(cls.__module__)
    for step in cls.__qualname__.split("."):
        found = getattr(found, step, None)
    if found is cls:
        return None
    return (
        f"{dotted(cls)} is not a class that its module has under that name: one that is made "
        f"inside of a function may depend on more than its source"
    )


def _registration(event_type: EventType) -> str:
    chain = [
        registry.upcaster(event_type.names, version) for version in range(1, event_type.version)
    ]
    return repr(
        (event_type.names, event_type.version, dotted(event_type.cls), [*map(dotted, chain)])
    )


def _upcaster_homes(event_type: EventType) -> set[str]:
    """Return the modules that upcasters of an event type come from, or are registered in."""
    return {
        home
        for version in range(1, event_type.version)
        if (upcaster := registry.upcaster(event_type.names, version)) is not None
        for home in (upcaster.__module__, registry.home_of(upcaster))
    }


def _fields(cls: type) -> Iterator[str]:
    """Yield the fields of a class with their types, as far as those can be resolved."""
    try:
        hints = typing.get_type_hints(cls)
    except Exception:  # an annotation is code of the project's, which may raise anything
        return
    for name, hint in hints.items():
        yield f"{dotted(cls)}.{name}: {ADDRESS.sub('', repr(hint))}"


# Modules


def _spec(name: str) -> ModuleSpec | None:
    """Return the spec of a module; nothing is imported to find it."""
    if name in sys.modules:
        return loaded_modules.spec_of(name)
    path: Any = None
    if parent := name.rpartition(".")[0]:
        spec = _spec(parent)
        path = None if spec is None else spec.submodule_search_locations
        if path is None:
            return None
    for finder in sys.meta_path:
        found = finder.find_spec(name, path) if hasattr(finder, "find_spec") else None
        if found is not None:
            return found
    return None


def _is_stdlib(name: str) -> bool:
    return _is_stdlib_root(name.partition(".")[0])


@functools.lru_cache(maxsize=1_024)
def _is_stdlib_root(top: str) -> bool:
    if top not in sys.stdlib_module_names:
        return False
    spec = _spec(top)  # a module of the project may stand before one of the standard library
    origin = getattr(spec, "origin", None) or ""
    return not Path(origin).is_absolute() or (
        origin.startswith(STDLIB) and not any(each in origin for each in INSTALLED)
    )


@functools.lru_cache(maxsize=1_024)
def _submodules(package: str) -> frozenset[str]:
    """Return the names of the modules inside of a package, loaded or not."""
    spec = _spec(package)
    places = None if spec is None else spec.submodule_search_locations
    return frozenset(each.name for each in pkgutil.iter_modules(list(places or ())))


def _held(modules: set[str]) -> set[str]:
    """
    Return the modules that the names of modules hold, also by their functions and classes.

    Such code runs although no import leads to it: a handler in a registry, an object that was
    passed in, a method that was replaced. Objects of other packages are not searched.
    """
    found: set[Any] = set()
    queue: list[Any] = [
        value
        for name in modules
        if sys.modules.get(name)
        for attribute, value in list(vars(sys.modules[name]).items())
        if not (type(value) is ModuleType and _name(value) == f"{name}.{attribute}")  # a submodule
    ]
    seen: dict[int, Any] = {}  # keeps each object alive, so that its id is not reused
    while queue:
        value = queue.pop()
        kind = type(value)  # not isinstance(), which runs code of lazy objects
        if kind in ATOMS or id(value) in seen:
            continue
        seen[id(value)] = value
        if kind is FunctionType:
            found.add(value.__globals__.get("__name__"))
            within = (value.__closure__, value.__defaults__, value.__kwdefaults__, vars(value))
            queue.extend(each for each in within if each)
        elif issubclass(kind, type):
            found.add(value.__module__)
            if value.__module__ in modules:
                queue.extend(each for each in list(vars(value).values()) if type(each) not in ATOMS)
        elif kind is ModuleType:
            found.add(_name(value))
        elif issubclass(kind, weakref.ref):
            queue.append(value())
        elif kind is CACHED:
            queue.append(vars(value))  # without the cached results
        elif _is_project(kind.__module__):
            found.add(kind.__module__)
            queue.extend(get_referents(value))
        elif issubclass(kind, HOLDERS) or kind.__module__ in HOLDING:
            queue.extend(get_referents(value))
    return {name for name in found if _is_project(name)}


def _name(module: ModuleType) -> Any:
    return vars(module).get("__name__")


def _is_project(name: Any) -> bool:
    """Return whether a loaded module is one that the project's imports are followed through."""
    if not isinstance(name, str) or sys.modules.get(name) is None:
        return False
    if name not in _projects:
        path = loaded_modules.file_of(name, loaded_modules.spec_of(name))
        distribution = None if path is None else distributions.of_file(path)
        _projects[name] = not (_is_stdlib(name) or name.partition(".")[0] == OURS) and (
            distribution is None or distribution.is_local
        )
    return _projects[name]


_answers: weakref.WeakKeyDictionary[type[Aggregate], Answer] = weakref.WeakKeyDictionary()
_sources: dict[tuple[str, bool], tuple[State, Source]] = {}
_settled: dict[tuple[str, bool], Source] = {}  # of modules whose file was the one that was loaded
_projects: dict[str, bool] = {}
