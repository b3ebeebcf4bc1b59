"""
System checks of personal data.

    E051  events or metadata have personal data, and these cannot be encrypted with the settings
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.checks import CheckMessage, Error, register

from eventlogs import conf
from eventlogs.events.codec import codec_for
from eventlogs.events.registry import registry
from eventlogs.exceptions import KeyUnavailable, RegistrationError
from eventlogs.privacy.database_keys import DatabaseKeyStore
from eventlogs.privacy.encryption import is_installed
from eventlogs.privacy.keys import key_store


@register()
def check_personal_data(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that personal data can be encrypted, if the project has any."""
    what = _personal()
    if what is None:
        return
    if not is_installed():
        yield Error(
            f"{what} personal, and the package cryptography is not installed.",
            hint="Install it: pip install 'eventlogs[privacy]'.",
            id="eventlogs.E051",
        )
        return
    try:
        store = key_store()
        # A store of the project's own may ask a server, which a check should not.
        if type(store) is DatabaseKeyStore:
            store.newest()
    except KeyUnavailable as error:
        yield Error(
            f"{what} personal, and cannot be encrypted: {error.reason}.",
            hint="Set EVENTLOGS['ENCRYPTION_KEYS'] = [key], with a key from: python -c 'import "
            "base64, os; print(base64.b64encode(os.urandom(32)).decode())'. Keep it secret.",
            id="eventlogs.E051",
        )


def _personal() -> str | None:
    """Return what is personal, as the beginning of a sentence."""
    for event_type in registry:
        try:
            if codec_for(event_type).personal is not None:
                return f"Fields of {event_type.cls.__qualname__} are"
        except RegistrationError:  # E007 reports it
            continue
    return "Metadata are" if conf.personal_metadata() else None
