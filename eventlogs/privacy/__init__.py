"""
Personal data that can be forgotten: keys of subjects, and what is encrypted under them.

The names are loaded when they are first used: modules below, such as the codec, import parts of
this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from eventlogs.events.personal import Personal
    from eventlogs.events.sealed import erased_paths
    from eventlogs.operations.forgetting import forget
    from eventlogs.operations.subject_exports import export_subject
    from eventlogs.privacy.database_keys import DatabaseKeyStore
    from eventlogs.privacy.keys import BaseKeyStore, SubjectCipherKey, key_store

__all__ = [
    "BaseKeyStore",
    "DatabaseKeyStore",
    "Personal",
    "SubjectCipherKey",
    "erased_paths",
    "export_subject",
    "forget",
    "key_store",
]

HOMES: Final = {
    "BaseKeyStore": "eventlogs.privacy.keys",
    "DatabaseKeyStore": "eventlogs.privacy.database_keys",
    "Personal": "eventlogs.events.personal",
    "SubjectCipherKey": "eventlogs.privacy.keys",
    "erased_paths": "eventlogs.events.sealed",
    "export_subject": "eventlogs.operations.subject_exports",
    "forget": "eventlogs.operations.forgetting",
    "key_store": "eventlogs.privacy.keys",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
