"""Writers and readers beside a schema of Citus that moves from node to node."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event as Flag

import pytest
from django.db import InternalError, connection

from tests.citus import SCHEMA, nodes_of
from tests.races import COMMITS, jobs
from tests.races.readers import Reader
from tests.races.test_feed_races import read_beside

pytestmark = [pytest.mark.citus, COMMITS]


PORT = "SELECT nodeport FROM citus_shards WHERE table_name = 'eventlogs_event'::regclass"
MOVE = "SELECT citus_schema_move(%s, %s, %s, %s)"


def move_until(is_over: Flag, url: str, mode: str) -> int:
    """Move the schema between the nodes, by a connection of this thread, and count the moves."""
    workers = [each for each in nodes_of(url) if not each.is_coordinator]
    moves = 0
    try:
        while not is_over.wait(timeout=1):  # seconds
            with connection.cursor() as cursor:
                cursor.execute(PORT)
                [port] = cursor.fetchone()
                node = next(each for each in workers if each.port != port)
                try:
                    cursor.execute(MOVE, [SCHEMA, node.host, node.port, mode])
                    moves += 1
                except InternalError as error:
                    # What the last move has left could not be removed yet: somebody reads there.
                    if "orphaned" not in str(error):
                        raise
    finally:
        connection.close()
    return moves


@pytest.mark.parametrize("mode", ["force_logical", "block_writes"])
def test_nothing_is_lost_skipped_or_doubled_while_a_schema_moves(
    crew, new_logs, citus_url, violations, mode
):
    log_ids, is_over, reader = new_logs(12), Flag(), Reader()

    with ThreadPoolExecutor(1) as thread:
        moving = thread.submit(move_until, is_over, citus_url, mode)
        outcomes = []
        try:
            stored = read_beside(
                [reader],
                lambda: outcomes.extend(
                    crew.race(8, jobs.append_in_transactions, "postgresql", log_ids, 40, "")
                ),
            )
        finally:
            is_over.set()
        moves = moving.result()

    assert moves >= 2
    assert reader.seen == stored
    assert violations(outcomes) == []
