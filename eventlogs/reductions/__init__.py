"""Reducing logs with a cache, and keeping the cached reductions up to date."""
