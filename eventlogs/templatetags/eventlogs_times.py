"""
Template filters for times: ``{% load eventlogs_times %}``.

``{{ event.recorded_at|moment }}`` is a ``<time>`` element whose text includes the time zone.
``{{ event.recorded_at|moment:"microseconds" }}`` has microseconds, too. ``moment_text`` is the
text without the element, for attributes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import template
from django.utils.html import format_html

from eventlogs.utils.times import localized, time_text

register = template.Library()


@register.filter(expects_localtime=False)
def moment(value: Any, timespec: str = "seconds") -> str:
    """Return a datetime as a ``<time>`` element, and any other value as the empty text."""
    if not isinstance(value, datetime):
        return ""
    return format_html(
        '<time datetime="{}">{}</time>',
        localized(value).isoformat(),
        time_text(value, timespec=timespec),
    )


@register.filter(expects_localtime=False)
def moment_text(value: Any, timespec: str = "seconds") -> str:
    """Return a datetime as text, and any other value as the empty text."""
    return time_text(value, timespec=timespec) if isinstance(value, datetime) else ""
