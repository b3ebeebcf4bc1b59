"""
Archives: files with the events of closed logs, which were taken out of the tables.

``frames`` is the form of a file, ``storage`` where files are kept, ``reading`` finds the logs in
them, and ``rules`` says which logs are archived. ``eventlogs.operations.archiving`` writes files,
and takes logs out of the tables and back. docs/retention.md says what that means for a project.
"""

from __future__ import annotations

from eventlogs.archives.rules import Retention

__all__ = ["Retention"]
