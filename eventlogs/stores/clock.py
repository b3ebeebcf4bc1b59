"""
The time of the database's clock, as the stores write it.

Django's ``Now()`` is the time of the session's zone on MySQL and MariaDB, while the columns hold
UTC: in a session of another zone, every time would be wrong by the difference. On SQLite, where
times are texts, it has three digits behind the point, and the same time as a parameter has six, or
no point: the two would not be equal.
"""

from __future__ import annotations

from typing import Any

from django.db.models.functions import Now


class UTCNow(Now):
    """The time of the statement, in UTC and to the microsecond, whatever the session's zone."""

    def as_mysql(self, compiler: Any, connection: Any, **extra_context: Any) -> Any:
        """Return MySQL's and MariaDB's own function for it."""
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **extra_context)

    def as_sqlite(self, compiler: Any, connection: Any, **extra_context: Any) -> Any:
        """Return the text that Django writes for a datetime."""
        return self.as_sql(
            compiler,
            connection,
            template="REPLACE(STRFTIME('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f', 'NOW') || '000',"
            " '.000000', '')",
            **extra_context,
        )
