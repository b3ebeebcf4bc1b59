-- The sequence that gives events their positions, quoted and with its schema.
SELECT pg_get_serial_sequence('eventlogs_event', 'position')
