"""
The implementations of this package, each held to its contract in ``eventlogs.testing.contracts``.

Stores that are broken on purpose show that the contract can fail.
"""
