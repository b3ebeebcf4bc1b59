"""The statements that append to one log in PostgreSQL, in two variants: see chained_sql.py."""

from __future__ import annotations

from typing import Final

from eventlogs.stores.statements import HotStatement


class Variant:
    """The statements that append: those for logs that are not chained, or those for all logs."""

    def __init__(self, *, chained: bool) -> None:
        many = "append_many_chained" if chained else "append_many"
        with_key = "append_many_chained" if chained else "append_with_key"
        create = "create_chained" if chained else "create"
        self.append_one = HotStatement("append_one", chained=chained)
        self.append_many = HotStatement(many, chained=chained)
        self.append_one_with_key = HotStatement("append_one_with_key", chained=chained)
        self.append_with_key = HotStatement(with_key, chained=chained)
        self.create_one = HotStatement("create_one", chained=chained)
        self.create_one_with_key = HotStatement("create_one_with_key", chained=chained)
        self.create = HotStatement(create, chained=chained)
        self.append_under_rules = HotStatement("append_under_rules", chained=chained)


UNCHAINED: Final = Variant(chained=False)
CHAINED: Final = Variant(chained=True)
