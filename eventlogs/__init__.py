"""
eventlogs: event sourcing for Django.

A *log* is the history of one entity. It holds immutable *events*; *reducing* it folds them
into an *aggregate*, the entity's current state.

All public names can be imported from here, models excepted. Each is listed once, in ``__all__``
of the module that defines it. They are loaded when they are first used: Django imports this
module before models can be imported.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Modules that need no models come first: settings may import an error or a caching policy.
HOMES = (
    *("exceptions", "ids", "events", "context", "aggregates", "pages", "policies", "fields"),
    *("feed", "archives", "logs", "projections", "operations.health"),
)

if TYPE_CHECKING:
    from eventlogs.aggregates import *
    from eventlogs.archives import *
    from eventlogs.context import *
    from eventlogs.events import *
    from eventlogs.exceptions import *
    from eventlogs.feed import *
    from eventlogs.fields import *
    from eventlogs.ids import *
    from eventlogs.logs import *
    from eventlogs.operations.health import *
    from eventlogs.pages import *
    from eventlogs.policies import *
    from eventlogs.projections import *

    __all__: list[str]
else:  # so that type checkers know the names above, and no others

    def __getattr__(name: str) -> Any:
        if name == "__all__":
            return sorted(each for home in HOMES for each in _module(home).__all__)
        # `from eventlogs import conf` looks for an attribute before it imports the module.
        if not name.startswith("_") and find_spec(f"eventlogs.{name}") is None:
            for home in HOMES:
                if name in _module(home).__all__:
                    value = globals()[name] = getattr(_module(home), name)
                    return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        try:
            return sorted({*globals(), *__getattr__("__all__")})
        except Exception:  # Django is not set up: not all homes can be imported yet
            return sorted(globals())

    def _module(home: str) -> Any:
        return import_module(f"eventlogs.{home}")
