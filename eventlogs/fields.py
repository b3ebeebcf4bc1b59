"""
Model fields: text that is compared byte for byte, and log ids for the read models of projects.

MySQL and MariaDB compare text by the collation of its column. Their default collations ignore
case, accents and trailing blanks, so two different idempotency keys could be equal. The collations
here compare code points and do not ignore trailing blanks (NO PAD):
https://mariadb.com/kb/en/supported-character-sets-and-collations/ and
https://dev.mysql.com/doc/refman/8.4/en/charset-unicode-sets.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs.conf import MAX_LOG_TYPE_LENGTH
from eventlogs.exceptions import InvalidLogId
from eventlogs.ids import LogId

__all__ = ["LogIdField"]

LOG_ID_LENGTH = MAX_LOG_TYPE_LENGTH + 27  # an underscore and 26 characters

MARIADB_COLLATION = "utf8mb4_nopad_bin"  # since 10.2
MYSQL_COLLATION = "utf8mb4_0900_bin"  # since 8.0.17


def exact_collation(connection: BaseDatabaseWrapper) -> str | None:
    """
    Return the collation that compares text byte for byte.

    None for PostgreSQL and SQLite, which do so by default.
    """
    if connection.vendor != "mysql":
        return None
    is_mariadb = getattr(connection, "mysql_is_mariadb", False)
    return MARIADB_COLLATION if is_mariadb else MYSQL_COLLATION


# Without type arguments: django-stubs then infers them from null=, as for a CharField.
class ExactCharField(models.CharField):  # type: ignore[type-arg]
    """Text that every database compares byte for byte."""

    description = "Text that is compared byte for byte"

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        """Add the collation, which depends on the kind of database."""
        parameters = super().db_parameters(connection)
        return {**parameters, "collation": self.db_collation or exact_collation(connection)}


if TYPE_CHECKING:
    Base = models.CharField[LogId | str, LogId]
else:
    Base = ExactCharField


class LogIdFormField(forms.CharField):
    """A log id in a form; ``cleaned_data`` contains a LogId, or None for an empty field."""

    def to_python(self, value: Any) -> Any:
        """Return the LogId; raise ValidationError for text that is no log id."""
        text = super().to_python(value)
        try:
            return LogId.parse(text) if text else None
        except InvalidLogId as error:
            raise ValidationError(str(error), code="invalid") from error


class LogIdField(Base):
    """
    A log id, stored as its text. It may be a primary key.

    Rows that are read contain a LogId; assignments and lookups accept its text, too.
    """

    description = "A log id"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the options of a CharField; ``max_length`` is fixed."""
        kwargs["max_length"] = LOG_ID_LENGTH
        super().__init__(*args, **kwargs)
        # Drop CharField's validator of the length: to_python has validated the text.
        self.__dict__.pop("validators", None)

    def deconstruct(self) -> Any:
        """Leave the length out of migrations."""
        name, path, args, kwargs = super().deconstruct()
        kwargs.pop("max_length", None)
        return name, path, args, kwargs

    def to_python(self, value: Any) -> LogId | None:
        """Return the LogId; raise ValidationError for text that is no log id."""
        if value is None or isinstance(value, LogId):
            return value
        try:
            return LogId.parse(value)
        except InvalidLogId as error:
            raise ValidationError(str(error), code="invalid") from error

    def from_db_value(self, value: str | None, *_: Any) -> LogId | None:
        """Return the LogId of a stored text."""
        return None if value is None else LogId.parse(value)

    def get_prep_value(self, value: Any) -> str | None:
        """Return the text; a lookup may search for a part of one."""
        return None if value is None else str(value)

    def formfield(self, **kwargs: Any) -> Any:
        """Return a form field that compares the text of a form with the row's LogId."""
        return super().formfield(**{"form_class": LogIdFormField, **kwargs})

    def value_to_string(self, obj: models.Model) -> str:
        """Return the text for serializers."""
        return str(self.value_from_object(obj))
