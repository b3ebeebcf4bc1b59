"""
Other ways to do the same, each measured in an environment of its own: see environments.py.

Nothing here imports eventlogs. Each uses its package as that package's documentation says, with
the settings that were fastest in trial runs.
"""
