"""
Attesting seals: proving that the history they stand over is still there, byte for byte.

All digests are computed anew from the events, and so are the leaves and the root of each seal.
A person who changes, removes or inserts an event up to a seal's position, and computes all digests
and heads anew as well, gets another root, and cannot sign it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from eventlogs.exceptions import InvalidSeal
from eventlogs.ids import LogId
from eventlogs.models import ErasedLog
from eventlogs.seals.checking import Check, Finding
from eventlogs.seals.documents import Seal
from eventlogs.seals.history import Past
from eventlogs.seals.keys import Trusted
from eventlogs.seals.leaves import Leaf
from eventlogs.seals.merkle import Sibling, Tree, root_of
from eventlogs.utils.words import counted

PROVED: Final = "proved"
DIFFERS: Final = "differs"
UNDECIDED: Final = "undecided"
NOT_TRUSTED: Final = "not trusted"

MOST: Final = 1_000  # findings that are kept


class Erased(NamedTuple):
    """
    A log that was erased.

    ``created_at`` is when it came to the database, if that is known. Up to the position
    ``complete_until``, a source that has events of it all the same has all of them.
    """

    row: ErasedLog
    created_at: datetime | None
    complete_until: int


class Source:
    """A history to attest; ``end`` is the last position that it covers."""

    end: int = 0
    knows_erased: bool = True  # whether ``erased`` has all logs that were erased

    def pasts(self, positions: Sequence[int]) -> Iterator[Past]:
        """Yield the logs in the order of UUIDs, recomputed as of some positions."""
        raise NotImplementedError

    def erased(self) -> Iterator[Erased]:
        """Yield the logs that were erased, in the same order."""
        return iter(())

    def erasures(self) -> int:
        """Return how many logs were erased up to now."""
        return 0

    def moves(self) -> tuple[int, ...]:
        """Return numbers that change when logs are archived, or brought back."""
        return ()


@dataclass
class Verdict:
    """
    The verdict on a seal.

    ``state`` is "proved", "differs", "undecided" (logs were erased or chained since, and there are
    no leaves, or archives cannot be read) or "not trusted" (the seal itself is not what it should
    be). ``notes`` say what the proof rests on.
    """

    seal: Seal
    state: str
    reason: str = ""
    notes: list[str] = field(default_factory=list)


class Proof(NamedTuple):
    """A leaf, the path from it to the root, and the seal that has this root."""

    leaf: Leaf
    path: list[Sibling]
    seal: Seal


@dataclass
class Attestation:
    """The verdicts on all seals, in their order, and what was found on the way."""

    verdicts: list[Verdict]
    findings: list[Finding] = field(default_factory=list)  # at most 1,000
    logs: int = 0
    events: int = 0
    proof: Proof | None = None

    @property
    def is_proved(self) -> bool:
        """Whether all seals are proved, and nothing else was found."""
        return not self.findings and all(each.state == PROVED for each in self.verdicts)


def attest(
    seals: Sequence[Seal],
    source: Source,
    trusted: Trusted,
    *,
    leaves: Callable[[], Iterable[Leaf]] | None = None,
    log: LogId | None = None,
) -> Attestation:
    """
    Return the verdicts on seals, the oldest first, against a history.

    Seals of several sequences may be given, one after the other: a seal that names none begins a
    sequence. The same seal given twice has one verdict.

    ``leaves`` gives the leaves of one of the seals, each time that it is called. ``log`` asks for
    the proof of that log by the last seal that is proved. Nothing is stored. Raise InvalidSeal if
    the leaves are of no seal here.
    """
    seals = list(dict.fromkeys(seals))  # two files may have the same seals
    has_leaves = None if leaves is None else _seal_of(leaves(), seals)
    checks: list[Check | None] = []
    found = Attestation([])
    for each, problem, note in _trusted(seals, trusted):
        notes = [note] if note else []
        found.verdicts.append(Verdict(each, NOT_TRUSTED if problem else "", problem, notes))
        of_it = leaves() if leaves is not None and each is has_leaves else None
        checks.append(
            None if problem else Check(each, of_it, log, knows_erased=source.knows_erased)
        )
    open_checks = [each for each in checks if each is not None]
    erasures, moves = source.erasures(), source.moves()
    if open_checks:
        _walk(open_checks, source, found)
    _decide(found, checks, source.end)
    if source.erasures() != erasures:
        _leave_open(found, "a log was erased while the events were read: attest it again")
    elif source.moves() != moves:
        # A log that is moved meanwhile may be seen in neither place, or in a part.
        _leave_open(
            found,
            "logs were archived or brought back while the events were read: attest it again",
        )
    return found


def _leave_open(found: Attestation, reason: str) -> None:
    for verdict in found.verdicts:
        if verdict.state == DIFFERS:
            verdict.state = UNDECIDED
            verdict.reason = reason


def _walk(checks: list[Check], source: Source, found: Attestation) -> None:
    """Give all logs to all checks, in the order of their UUIDs."""
    positions = sorted({each.seal.position for each in checks})
    marks = [positions.index(each.seal.position) for each in checks]
    for log_id, past, erased in _merged(source.pasts(positions), source.erased()):
        problems: list[Finding] = []
        if past is not None:
            found.events += past.marks[-1].version
            found.logs += 1
            if past.unread:
                problems.append(Finding(past.unread, log_id))
            if past.misfit is not None:
                problems.append(Finding(past.misfit.message, log_id, past.misfit.index))
        for check, number in zip(checks, marks, strict=True):
            if past is not None and past.unread:
                problems += check.add_unread(log_id)
            elif erased is not None and (
                past is None or check.seal.position > erased.complete_until
            ):
                row, created_at, _ = erased
                mark = past.marks[number] if past is not None and past.is_chained else None
                problems += check.add_erased(row, created_at=created_at, mark=mark)
            elif past is not None and past.marks[number].version:
                mark, misfit = past.marks[number], past.misfit
                is_fit = misfit is None or misfit.index >= mark.version
                problems += check.add(log_id, mark, is_chained=past.is_chained, is_fit=is_fit)
        found.findings += problems[: MOST - len(found.findings)]
    for check in checks:
        found.findings += check.end()[: MOST - len(found.findings)]


def _merged(
    pasts: Iterator[Past], erased: Iterator[Erased]
) -> Iterator[tuple[LogId, Past | None, Erased | None]]:
    """Yield each log once: its events, its erasure, or both."""
    stone = next(erased, None)
    for past in pasts:
        while stone is not None and stone.row.pk < past.log_id.uuid:
            yield stone.row.log_id, None, stone
            stone = next(erased, None)
        if stone is not None and stone.row.pk == past.log_id.uuid:
            yield past.log_id, past, stone
            stone = next(erased, None)
        else:
            yield past.log_id, past, None
    if stone is not None:
        yield stone.row.log_id, None, stone
        yield from ((each.row.log_id, None, each) for each in erased)


def _trusted(seals: Sequence[Seal], trusted: Trusted) -> Iterator[tuple[Seal, str, str]]:
    """Yield the seals, what is wrong with each of them, and what is to be known about it."""
    ends: dict[str, Seal] = {}  # the last seal of each sequence, by its digest
    named: set[str] = set()
    for each in seals:
        problem, note = trusted.why_not(each) or "", ""
        before = None if each.previous is None else ends.pop(each.previous, None)
        if before is not None:
            if not problem and each.position < before.position:
                problem = f"its position is before that of the last seal, {before.position}"
        elif each.previous is None:
            if not problem and each.digest in named:
                problem = "it stands behind the seal that names it: the seals are out of order"
            elif ends:
                note = "it begins another sequence of seals: it does not name a seal before it"
        elif ends:
            problem = problem or (
                "it does not name the seal before it in the file: one was removed or put in"
            )
        else:
            note = "it names a seal before it that is not here"
        yield each, problem, note
        ends[each.digest] = each
        if each.previous is not None:
            named.add(each.previous)


def _seal_of(leaves: Iterable[Leaf], seals: Sequence[Seal]) -> Seal:
    """Return the seal whose leaves these are."""
    tree = Tree()
    for leaf in leaves:
        tree.add(leaf.text)
    root = tree.root().hex()
    for seal in reversed(seals):
        if (seal.root, seal.logs) == (root, tree.count):
            return seal
    raise InvalidSeal(1, "these are the leaves of another seal, or they were changed")


def _decide(found: Attestation, checks: Sequence[Check | None], end: int) -> None:
    proved: Seal | None = None
    for verdict, check in zip(found.verdicts, checks, strict=True):
        if check is None:
            continue
        tree = check.proved()
        if tree is not None:
            verdict.state = PROVED
            verdict.notes += check.notes()
            proved = verdict.seal
            leaf, path = check.leaf, tree.path()
            found.proof = None
            if leaf is not None and root_of(leaf.text, path).hex() == verdict.seal.root:
                found.proof = Proof(leaf, path, verdict.seal)
            continue
        verdict.state = DIFFERS if check.differs else UNDECIDED
        verdict.reason = check.reason()
        # No reason by itself: the log with the newest events may have been erased.
        if end < verdict.seal.position:
            verdict.reason += (
                f". The history ends at position {end}, before the seal's {verdict.seal.position}"
            )
            if verdict.state == DIFFERS:
                verdict.reason += ": an older backup was restored, or the end was removed"
        if proved is not None and verdict.state == DIFFERS:
            verdict.reason += (
                f". All {counted(proved.events, 'event')} up to position {proved.position} are "
                f"proved by the seal of {proved.time}, so what differs came after it"
            )
