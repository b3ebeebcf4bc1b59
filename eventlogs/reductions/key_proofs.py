"""
The proof of what was made of personal data: all keys that decrypted them are still there.

The keys are looked up at each use, and never kept: so a key that was destroyed has its effect
in every process at once, whichever cache has the state. What has no personal data costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from eventlogs.events import used_keys
from eventlogs.privacy.keys import key_store


def are_there(key_ids: Collection[UUID]) -> bool:
    """
    Return whether none of these keys is destroyed: one query, and none for no keys.

    Nothing is decrypted for it. Raise KeyUnavailable where the key store has no such key.
    """
    return not key_ids or len(key_store().existing(key_ids)) == len(key_ids)


def use(key_ids: Collection[UUID]) -> bool:
    """Return whether none of these keys is destroyed; and note them, for a fold around this one."""
    if not are_there(key_ids):
        return False
    used_keys.note(key_ids)
    return True
