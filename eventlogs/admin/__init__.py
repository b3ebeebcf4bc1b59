"""The admin: for reading. Nothing here adds, changes or deletes an event."""

from eventlogs.admin import projections

__all__ = ["projections"]
