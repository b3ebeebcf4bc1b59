-- The feed on a replica: the highest position that is known to have been settled on the primary when
-- the row that holds it was committed there, and the position of the newest event.
--
-- Such rows are the checkpoints of projections, and the heartbeat (feed/reader.py). Those of rebuilds
-- are left out: they begin at 0, and are removed again. So is a checkpoint above all events. It is
-- of another history: its table was restored from another backup than that of the events.
SELECT (SELECT max(position)
        FROM eventlogs_checkpoint
        WHERE NOT is_rebuild AND position <= newest.position),
       newest.position
FROM (SELECT max(position) AS position FROM eventlogs_event) AS newest
