"""
Variants of a statement: lines of its file that are there in some of them only.

The statements that append have two: for logs that are not chained, and for all logs.

In the files of ``sql/``, a line that begins with ``--chained: `` belongs to the second variant
only, and one that ends with ``--unchained`` to the first only. The first stores nothing in a log
that is chained (its ``head`` is not NULL): so a database without chained logs pays for one
comparison, and a process whose settings do not chain cannot break a chain. Such an append is then
tried with the second variant.

``{digest}`` stands for the digest of ``events/chain.py``, made of the columns of ``link``. For a
batch, the statement makes what follows the predecessor's digest, and the function
``eventlogs_chain`` the digests.

Each of them is there for both layouts, too: a line that begins with ``--buckets: `` belongs to that
of ``stores/buckets.py``, in which the statement takes positions and stores them.

A page of the feed has a variant for each choice of FILTERS: a line that begins with, for example,
``--types: `` belongs to those with that filter.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final, TypedDict

from eventlogs.events.chain import FIRST

CHAINED: Final = re.compile(r"^( *)--chained: ")
BUCKETS: Final = re.compile(r"^( *)--buckets: ")
UNCHAINED: Final = "--unchained"
FILTERS: Final = ("types", "unknown", "log_types", "partition")
FILTER: Final = re.compile(rf"^--({'|'.join(FILTERS)}): ")

# Few functions: PostgreSQL prepares each of them anew for each run of a statement. concat_ws leaves
# the key out where there is none.
MACROS: Final = {
    # Of the row of allowed, if there is one: its columns, and the digests of the batch. OFFSET 0
    # keeps PostgreSQL from putting what is the same for all events into the sub-query of each.
    "{digests_of_batch}": "SELECT first_index, recorded_at, CASE WHEN head IS NOT NULL THEN"
    " eventlogs_chain(head, (SELECT array_agg(start || convert_to(concat_ws(E'\\n', item ->> 0,"
    " item ->> 1, first_index + number - 1, item -> 2, %(key)s::text), 'UTF8') ORDER BY number)"
    " FROM jsonb_array_elements(%(events)s::jsonb) WITH ORDINALITY AS batch (item, number)))"
    " END AS digests FROM (SELECT *, {common} AS start FROM allowed OFFSET 0) AS allowed",
    "{digest}": "sha256(link.head || timestamptz_send(link.recorded_at) || convert_to(concat_ws("
    "E'\\n', link.log_id, link.log_type, link.metadata, link.type, link.schema_version, link.index,"
    " link.data, link.key), 'UTF8'))",
    # What is the same for all events of an append, up to the line feed.
    "{common}": "timestamptz_send(recorded_at) || convert_to(concat_ws(E'\\n', %(log)s::uuid,"
    " %(log_type)s::text, %(metadata)s::jsonb, ''), 'UTF8')",
    "{common_of_request}": "timestamptz_send(recorded_at) || convert_to(concat_ws(E'\\n', log_id,"
    " log_type, metadata, ''), 'UTF8')",
    "{no_head}": f"decode('{FIRST.hex()}', 'hex')",
    # The one event of an append, as columns of link.
    "{one_event}": "%(log)s::uuid AS log_id, %(log_type)s::text AS log_type,"
    " %(type)s::text AS type, %(schema_version)s::integer AS schema_version,"
    " %(data)s::jsonb AS data, %(metadata)s::jsonb AS metadata",
}


class Variant(TypedDict, total=False):
    """Which variant of a statement is meant."""

    chained: bool
    has_buckets: bool
    filters: Collection[str]


def variant(
    text: str, *, chained: bool = False, has_buckets: bool = False, filters: Collection[str] = ()
) -> str:
    """Return the text of a statement in one of its variants."""
    lines = [_of(line, filters) for line in text.splitlines()]
    if chained:
        lines = [CHAINED.sub(r"\1", line) for line in lines if not line.endswith(UNCHAINED)]
    else:
        lines = [line.removesuffix(UNCHAINED).rstrip() for line in lines if not CHAINED.match(line)]
    if has_buckets:
        lines = [BUCKETS.sub(r"\1", line) for line in lines]
    else:
        lines = [line for line in lines if not BUCKETS.match(line)]
    text = "\n".join(lines)
    if chained:
        text = text.replace("{inserted}", "{inserted}, digest")
        for macro, sql in MACROS.items():
            text = text.replace(macro, sql)
    return text.replace("{inserted}", "position, {inserted}") if has_buckets else text


def _of(line: str, filters: Collection[str]) -> str:
    """Return a line without the filter that it begins with, if that one is among these."""
    found = FILTER.match(line)
    return line[found.end() :] if found and found[1] in filters else line
