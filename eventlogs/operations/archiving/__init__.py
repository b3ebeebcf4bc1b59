"""
Retention: closed logs are moved from the tables to archives, and can be brought back.

``archive`` moves what the rules of ``EVENTLOGS["RETENTION"]`` name, ``restore`` brings one log
back, ``check`` reads all archives and compares them with the tables, and ``tidy`` removes what
interrupted calls have left.

Nothing is taken out of the tables before the archive was read back from its storage and compared
with the events, byte by byte. The order of the steps is what makes that hold when the process is
killed between any two of them:

1. a row of ArchiveFile is committed, in the state "writing": nothing relies on such a file;
2. the file is written, and its manifest;
3. the file is read back from the storage, and compared with the events in the tables;
4. one transaction locks the logs, checks that nobody has appended to them and that the file's row
   is still "writing", deletes the events, adds the rows of archived logs, and makes the file
   "complete".

Before step 4 the tables are as they were, and the file is left over; ``tidy`` deletes it after an
hour. After step 4 the file is complete and was compared. ``tidy`` marks a file as "replaced" before
it deletes it, and step 4 refuses such a file: so a slow call never relies on a file that another
one deletes.
"""

from __future__ import annotations

from eventlogs.archives.rules import rules
from eventlogs.operations.archiving.bringing_back import is_back, restore
from eventlogs.operations.archiving.checking import Checked, check
from eventlogs.operations.archiving.choosing import Limit, Unreadable
from eventlogs.operations.archiving.running import (
    Archiving,
    Waiting,
    archive,
    waiting,
)
from eventlogs.operations.archiving.tidying import Tidied, tidy

__all__ = [
    "Archiving",
    "Checked",
    "Limit",
    "Tidied",
    "Unreadable",
    "Waiting",
    "archive",
    "check",
    "is_back",
    "restore",
    "rules",
    "tidy",
    "waiting",
]
