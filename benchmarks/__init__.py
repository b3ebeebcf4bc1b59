"""
What eventlogs costs, as ratios taken in one run.

Each module measures one thing beside its limit (pgbench's bare INSERT) or its alternative
(the ORM), in turns, so that a machine that is slow for a while is slow for both::

    DATABASE_URL=postgresql://… python -m benchmarks [appends] [batches] [growth] [streaming] [feed]
"""
