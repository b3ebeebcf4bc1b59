"""Model fields for the read models of projects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db import models

from eventlogs.conf import MAX_LOG_TYPE_LENGTH
from eventlogs.exceptions import InvalidLogId
from eventlogs.ids import LogId

LOG_ID_LENGTH = MAX_LOG_TYPE_LENGTH + 27  # an underscore and 26 characters


if TYPE_CHECKING:
    Base = models.CharField[LogId | str, LogId]
else:
    Base = models.CharField


class LogIdField(Base):
    """
    A log id, stored as its text; good as a primary key.

    Rows that are read hold a LogId; assigning and looking up takes its text as well.
    """

    description = "A log id"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the options of a CharField; ``max_length`` is fixed."""
        kwargs["max_length"] = LOG_ID_LENGTH
        super().__init__(*args, **kwargs)
        # Without CharField's validator of the length: to_python has judged.
        self.__dict__.pop("validators", None)

    def deconstruct(self) -> Any:
        """Leave the length out of migrations."""
        name, path, args, kwargs = super().deconstruct()
        kwargs.pop("max_length", None)
        return name, path, args, kwargs

    def to_python(self, value: Any) -> LogId | None:
        """Return the LogId; raise ValidationError for text that is none."""
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
        """Return the text; what is looked up may be a part of one."""
        return None if value is None else str(value)

    def value_to_string(self, obj: models.Model) -> str:
        """Return the text for serializers."""
        return str(self.value_from_object(obj))
