"""An observer that notes all that it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eventlogs.observers import Append, Fact, Observer, Operation, register, unregister


class Notes(Observer):
    """Notes operations and facts, in their order."""

    def __init__(self) -> None:
        self.begun: list[Operation] = []
        self.ended: list[Any] = []
        self.dropped: list[Operation] = []
        self.commits: list[Append] = []
        self.facts: list[Any] = []

    def begin(self, operation: Operation) -> Any:
        self.begun.append(operation)
        return len(self.begun)

    def end(self, operation: Operation, token: Any) -> None:
        assert self.begun[token - 1] is operation
        self.ended.append(operation)

    def drop(self, operation: Operation, token: Any) -> None:
        self.dropped.append(operation)

    def committed(self, append: Append) -> None:
        self.commits.append(append)

    def happened(self, fact: Fact) -> None:
        self.facts.append(fact)

    def of(self, kind: type) -> list[Any]:
        """Return the ended operations of a kind, or its facts."""
        return [each for each in [*self.ended, *self.facts] if isinstance(each, kind)]

    @property
    def outcomes(self) -> list[str]:
        """The outcomes of the appends."""
        return [each.outcome for each in self.of(Append)]


@contextmanager
def watched(observer: Any = None) -> Iterator[Any]:
    """Register an observer in a block, by default one that notes."""
    observer = observer or Notes()
    register(observer)
    try:
        yield observer
    finally:
        unregister(observer)
