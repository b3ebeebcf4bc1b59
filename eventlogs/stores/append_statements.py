"""The statements that append to one log in PostgreSQL, in four variants: see variants.py."""

from __future__ import annotations

from typing import Final

from eventlogs.stores.statements import HotStatement


class Variant:
    """
    The statements that append: those for logs that are not chained, or those for all logs.

    With ``has_buckets`` they take positions from counters, see ``buckets.py``.
    """

    def __init__(self, *, chained: bool, has_buckets: bool) -> None:
        def statement(name: str) -> HotStatement:
            return HotStatement(name, chained=chained, has_buckets=has_buckets)

        self.append_one = statement("append_one")
        self.append_many = statement("append_many_chained" if chained else "append_many")
        self.append_one_with_key = statement("append_one_with_key")
        self.append_with_key = statement("append_many_chained" if chained else "append_with_key")
        self.create_one = statement("create_one")
        self.create_one_with_key = statement("create_one_with_key")
        self.create = statement("create_chained" if chained else "create")
        self.append_under_rules = statement("append_under_rules")


VARIANTS: Final = {
    (chained, has_buckets): Variant(chained=chained, has_buckets=has_buckets)
    for chained in (False, True)
    for has_buckets in (False, True)
}
