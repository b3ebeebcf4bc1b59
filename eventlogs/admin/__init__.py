"""The admin: for reading. Nothing here adds, changes or deletes an event."""

from eventlogs.admin.events import EventAdmin
from eventlogs.admin.logs import LogAdmin
from eventlogs.admin.mixins import EventLogAdminMixin
from eventlogs.admin.projections import ProjectionAdmin

__all__ = ["EventAdmin", "EventLogAdminMixin", "LogAdmin", "ProjectionAdmin"]
