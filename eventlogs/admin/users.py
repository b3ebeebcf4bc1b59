"""Links from ``user`` in metadata to the pages of users in the admin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from django.contrib.admin import AdminSite
from django.contrib.admin.utils import quote
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse

from eventlogs.events.metadata import USER, id_in


class Actor(NamedTuple):
    """A person or process that did something: a text, and the address of the user's page."""

    text: str
    address: str | None = None


def users_of(
    site: AdminSite, request: HttpRequest, metadata: Iterable[Mapping[str, Any]]
) -> dict[str, Actor]:
    """
    Return the users whose primary keys metadata have as ``user``, by that text, with one query.

    Return none if users are not registered on the site, or the user of the request may not view
    them there.
    """
    model: Any = get_user_model()
    if not site.is_registered(model):
        return {}
    if not site.get_model_admin(model).has_view_permission(request):
        return {}
    keys: dict[Any, str] = {}
    for each in metadata:
        if (name := id_in(each, USER)) is None:
            continue
        try:
            keys[model._meta.pk.clean(str(name), None)] = str(name)
        except ValidationError:
            continue
    found = {}
    page = f"{site.name}:{model._meta.app_label}_{model._meta.model_name}_change"
    for user in model._default_manager.filter(pk__in=keys) if keys else ():
        try:
            address = reverse(page, args=[quote(user.pk)])
        except NoReverseMatch:  # an admin class with other addresses
            return {}
        name = keys[user.pk]
        found[name] = Actor(f"{user.get_username()} ({name})", address)
    return found


def actor(
    text: str | None, metadata: Mapping[str, Any], users: Mapping[str, Actor]
) -> Actor | None:
    """Return the actor that metadata name: ``text``, with a link if it is a user; or None."""
    if text is None:
        return None
    is_user = str(id_in(metadata, USER)) == text
    return users.get(text, Actor(text)) if is_user else Actor(text)
