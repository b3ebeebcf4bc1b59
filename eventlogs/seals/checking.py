"""
One seal against a history: the tree that the history has now, and where it differs.

Without the seal's leaves only the root is known. A log that was erased has no events to compute its
leaf from, so its tombstone stands in: it has the same leaf if it got no events between the seal and
the erasure. Whether a log was erased before or after the seal, and whether it was there at the
seal's time, is guessed in three ways. A wrong guess cannot prove anything, because no other leaves
give the same root; it can only leave the seal undecided. The leaves of the seal decide it.

Without them, a root that differs is a difference for certain only if all numbers are those of the
seal: as many logs, and no more events. Logs only grow, so each erased log then had as many events
at the seal as at its erasure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from eventlogs.events.chain import DIGEST_SIZE
from eventlogs.ids import LogId
from eventlogs.models import ErasedLog
from eventlogs.seals.documents import Seal
from eventlogs.seals.history import Mark
from eventlogs.seals.leaves import Leaf
from eventlogs.seals.merkle import Tree
from eventlogs.utils.words import counted


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a log, or with the event of that index. It shows no payload data."""

    message: str
    log_id: LogId
    index: int | None = None


@dataclass
class _Counts:
    """Logs up to the position of a seal, as they are now."""

    logs: int = 0  # chained
    events: int = 0  # of these
    unchained: int = 0
    erased: int = 0  # with their chain
    erased_events: int = 0  # of these
    erased_then: int = 0  # of these, by the times in their tombstones there at the seal
    erased_since: int = 0  # by the time in their tombstones
    longer: int = 0  # erased, with events after the seal
    new: int = 0  # chained logs that the leaves do not have
    unread: int = 0  # archived logs whose events cannot be read


class Check:
    """A seal, and the history as of its position, log by log in the order of UUIDs."""

    def __init__(
        self,
        seal: Seal,
        leaves: Iterable[Leaf] | None,
        wanted: LogId | None,
        *,
        knows_erased: bool = True,
    ) -> None:
        """
        ``leaves`` are those of the seal, if they are known; ``wanted`` is the log to prove.

        Without ``knows_erased``, as in an export, a log that is not there may have been erased or
        archived.
        """
        self.seal = seal
        self.leaf: Leaf | None = None  # of the wanted log
        self._wanted = wanted
        self._knows_erased = knows_erased
        self._perhaps = 0  # logs of the leaves that may have been erased or archived
        self._trees = [Tree()]
        self._leaves: Iterator[Leaf] | None = None if leaves is None else iter(leaves)
        self._next: Leaf | None = None if self._leaves is None else next(self._leaves, None)
        self._counts = _Counts()
        self._differs = 0  # leaves
        self._misfits = 0  # logs

    def add(
        self, log_id: LogId, mark: Mark, *, is_chained: bool, is_fit: bool = True
    ) -> list[Finding]:
        """Add a log that is there; ``is_fit`` says whether its events fit their digests."""
        self._misfits += not is_fit
        problems = self._pass_by(log_id)
        known = self._known(log_id)
        if not is_chained:
            self._counts.unchained += 1
            if known is not None:
                problems += self._finding(log_id, "its chain was removed")
            return problems
        leaf = Leaf(log_id, *mark)
        self._counts.logs += 1
        self._counts.events += leaf.version
        if self._leaves is None:
            self._grow(leaf)
        elif known is None:
            self._counts.new += 1
            if not self.seal.unchained:
                problems += self._finding(log_id, "it was not there when the seal was made")
        else:
            self._grow(known)
            if leaf.version < known.version and not self._knows_erased and is_fit:
                problems += [self._perhaps_moved(log_id, leaf.version, known.version)]
            elif known.version != leaf.version:
                had = f"it has {counted(leaf.version, 'event')} up to the seal's position"
                problems += self._finding(log_id, f"{had}, and had {known.version:,}")
            elif known.head != leaf.head:
                problems += self._finding(log_id, "its events are not those of the seal")
        return problems

    def add_erased(
        self, row: ErasedLog, *, created_at: datetime | None = None, mark: Mark | None = None
    ) -> list[Finding]:
        """
        Add a log that was erased.

        ``created_at`` is when it came to the database: of an imported tombstone, that is after the
        erasure. ``mark`` is what a source has of its events up to the position of the seal: all of
        them, or the first ones.
        """
        log_id, digest = row.log_id, bytes(row.digest)
        problems = self._pass_by(log_id)
        known = self._known(log_id)
        leaf = Leaf(log_id, row.count, digest)
        is_since = row.erased_at > self.seal.moment
        if mark is not None and mark.version:
            problems += self._compared(leaf, known, mark)
        if self._leaves is None:
            is_imported = created_at is not None and created_at > row.erased_at
            if is_imported and created_at is not None and created_at > self.seal.moment:
                return problems  # no seal before the import has a leaf of it
            if len(digest) == DIGEST_SIZE:
                made = created_at or log_id.created_at
                self._guess(leaf, is_since, made)
                self._counts.erased += 1
                self._counts.erased_events += row.count
                self._counts.erased_since += is_since
                is_then = made is not None and made <= self.seal.moment
                self._counts.erased_then += is_then or not is_since
            return problems
        if known is None:
            return problems
        self._counts.erased += 1
        self._counts.erased_since += is_since
        self._grow(known)
        if row.count > known.version and digest == known.head:
            text = f"its tombstone has {counted(row.count, 'event')}, and the digest of another"
            problems += self._finding(log_id, text)
        if row.count < known.version:
            text = f"it was erased with {counted(row.count, 'event')}, and had {known.version:,}"
            problems += self._finding(log_id, text)
        elif row.count == known.version and digest != known.head:
            problems += self._finding(log_id, "what was erased is not what the seal stands over")
        self._counts.longer += row.count > known.version
        return problems

    def _compared(self, leaf: Leaf, known: Leaf | None, mark: Mark) -> list[Finding]:
        """Compare the events of an erased log with its tombstone, and with the seal's leaf."""
        log_id = leaf.log_id
        had = f"it has {counted(mark.version, 'event')} up to the seal's position"
        if mark.version > leaf.version:
            return self._finding(log_id, f"{had}, and was erased with {leaf.version:,}")
        if mark.version == leaf.version and mark.head != leaf.head:
            return self._finding(log_id, "its events are not those that were erased")
        if self._leaves is None:
            return []
        if known is None:
            self._counts.new += 1
            if self.seal.unchained:
                return []
            return self._finding(log_id, "it was not there when the seal was made")
        if mark.version > known.version:
            return self._finding(log_id, f"{had}, and had {known.version:,}")
        if mark.version == known.version and mark.head != known.head:
            return self._finding(log_id, "its events are not those of the seal")
        return []

    def add_unread(self, log_id: LogId) -> list[Finding]:
        """Add an archived log whose events cannot be read: with it, nothing is proved."""
        problems = self._pass_by(log_id)
        self._known(log_id)
        self._counts.unread += 1
        return problems

    def end(self) -> list[Finding]:
        """Return what is left when all logs have been added."""
        problems = []
        while self._next is not None:
            problems += self._missing()
        return problems

    def proved(self) -> Tree | None:
        """Return the tree with the root of the seal, if the history has it."""
        if self._too_many_unchained or self._differs or self._perhaps or self._counts.unread:
            return None
        for tree in self._trees:
            if (tree.count, tree.root().hex()) == (self.seal.logs, self.seal.root):
                return tree
        return None

    @property
    def differs(self) -> bool:
        """Whether the history, if it is not proved, certainly is another one."""
        now = self._counts
        if self._too_many_unchained or self._differs:
            return True
        if now.unread:
            return False
        if self._leaves is not None:
            return not self._perhaps
        if self._may_be_chained_since or self._lacks_logs or self._lacks_events:
            return False
        erased_before = now.erased - now.erased_since
        return (not now.erased_since and erased_before <= self.seal.erased) or self._has_the_numbers

    @property
    def _has_the_numbers(self) -> bool:
        """
        Whether the logs are those of the seal, and none had fewer events then.

        In an export, a log that was erased later may take the place of one that is archived: so
        all that were erased must be older than the seal.
        """
        now = self._counts
        return (
            now.logs + now.erased == self.seal.logs
            and now.events + now.erased_events <= self.seal.events
            and (self._knows_erased or now.erased_then == now.erased)
        )

    @property
    def _lacks_logs(self) -> bool:
        """Whether logs are missing that may have been erased or archived."""
        now = self._counts
        return not self._knows_erased and now.logs + now.erased < self.seal.logs

    @property
    def _lacks_events(self) -> bool:
        """Whether logs may have ended later, and have been archived between two exports."""
        lacks = self._counts.events + self._counts.erased_events < self.seal.events
        return not self._knows_erased and lacks and not self._misfits

    @property
    def _too_many_unchained(self) -> bool:
        return self._counts.unchained + self._counts.new > self.seal.unchained

    @property
    def _may_be_chained_since(self) -> bool:
        return self._counts.unchained < self.seal.unchained

    def notes(self) -> list[str]:
        """Return what a proof rests on, besides events."""
        found = []
        erased = self._counts.erased
        if erased:
            found.append(
                f"{counted(erased, 'log was', 'logs were')} erased; what is left of them stands in"
            )
        if self._counts.longer:
            found.append(
                f"{counted(self._counts.longer, 'of these', 'of these')} had events after the "
                f"seal: only the leaves of the seal show what they were"
            )
        if self.seal.unchained:
            found.append(
                f"nothing is said about {counted(self.seal.unchained, 'log')} that had no chain"
            )
        return found

    def reason(self) -> str:
        """Return why the history is not proved."""
        seal, now = self.seal, self._counts
        if self._too_many_unchained:
            there = counted(now.unchained + now.new, "log")
            return (
                f"there are {there} up to its position that it does not stand over, and there "
                f"were {seal.unchained:,}: logs were put in"
            )
        if self._leaves is not None and self._differs:
            return f"{counted(self._differs, 'log differs', 'logs differ')} from its leaves"
        if now.unread:
            lacking = counted(now.unread, "archived log")
            return (
                f"the events of {lacking} cannot be read. Restore the files that are named from a "
                f"backup, then attest it again"
            )
        if self._leaves is not None:
            return (
                f"{counted(self._perhaps, 'log is', 'logs are')} missing, and all others are those "
                f"of its leaves. An export does not have logs that were erased or archived: ask "
                f"the database"
            )
        if self._lacks_logs:
            lacking = counted(seal.logs - now.logs - now.erased, "log is", "logs are")
            return (
                f"{lacking} missing, perhaps erased or archived. An export does not have such "
                f"logs: attest the database, or pass --leaves to compare the other logs"
            )
        if self._lacks_events:
            missing = seal.events - now.events - now.erased_events
            lacking = counted(missing, "event is", "events are")
            return (
                f"{lacking} missing, perhaps of logs that were archived between two exports. Pass "
                f"--archive with the files of their archives, or --leaves to compare the other logs"
            )
        if not self.differs:
            why = []
            if now.erased_since:
                why.append(f"{counted(now.erased_since, 'log was', 'logs were')} erased since")
            elif now.erased > seal.erased:
                gone = now.erased - seal.erased
                why.append(f"{counted(gone, 'log was', 'logs were')} erased at about its time")
            if self._may_be_chained_since:
                gone = seal.unchained - now.unchained
                why.append(f"{counted(gone, 'log was', 'logs were')} chained or erased since")
            return f"{' and '.join(why)}, so its leaves are needed: pass --leaves"
        if self._misfits:
            return "the root is another one: see the events that are named"
        what = "events were changed or swapped, and all digests computed anew"
        if now.erased:
            what += ", or the tombstone of an erased log was changed"
        logs, events = now.logs + now.erased, now.events
        if logs != seal.logs:
            what = f"it stands over {counted(seal.logs, 'log')}, and there are {logs:,}"
        elif not now.erased and events != seal.events:
            what = f"it stands over {counted(seal.events, 'event')}, and there are {events:,}"
        return f"the root is another one: {what}"

    def _known(self, log_id: LogId) -> Leaf | None:
        """Take the leaf of a log from those of the seal."""
        leaf = self._next
        if leaf is None or self._leaves is None or leaf.log_id.uuid != log_id.uuid:
            return None
        self._next = next(self._leaves, None)
        return leaf

    def _pass_by(self, log_id: LogId) -> list[Finding]:
        """Return a finding for each leaf before this log: its log is missing."""
        problems: list[Finding] = []
        order = log_id.uuid.bytes
        while self._next is not None and self._next.order < order:
            problems += self._missing()
        return problems

    def _missing(self) -> list[Finding]:
        leaf = self._next
        if leaf is None or self._leaves is None:
            return []
        self._next = next(self._leaves, None)
        had = counted(leaf.version, "event")
        if self._knows_erased:
            return self._finding(leaf.log_id, f"it is missing, and had {had}")
        self._perhaps += 1
        text = f"it is missing here, perhaps erased or archived, and had {had}"
        return [Finding(f"{text} (seal of {self.seal.time})", leaf.log_id)]

    def _perhaps_moved(self, log_id: LogId, version: int, had: int) -> Finding:
        self._perhaps += 1
        has = f"it has {counted(version, 'event')} here, and had {had:,}"
        return Finding(f"{has}: perhaps it was archived since (seal of {self.seal.time})", log_id)

    def _finding(self, log_id: LogId, message: str) -> list[Finding]:
        self._differs += 1
        return [Finding(f"{message} (seal of {self.seal.time})", log_id)]

    def _grow(self, leaf: Leaf) -> None:
        is_wanted = leaf.log_id == self._wanted
        if is_wanted:
            self.leaf = leaf
        for tree in self._trees:
            tree.add(leaf.text, prove=is_wanted)

    def _guess(self, leaf: Leaf, is_since: bool, made: datetime | None) -> None:
        """Add an erased log to the trees of the guesses by which it was there."""
        if not is_since:
            self._grow(leaf)
            return
        if len(self._trees) == 1:
            [tree] = self._trees
            self._trees = [tree, tree.copy(), tree.copy()]
        all_of_them, by_id, _ = self._trees
        is_wanted = leaf.log_id == self._wanted
        if is_wanted:
            self.leaf = leaf
        all_of_them.add(leaf.text, prove=is_wanted)
        if made is None or made <= self.seal.moment:
            by_id.add(leaf.text, prove=is_wanted)
