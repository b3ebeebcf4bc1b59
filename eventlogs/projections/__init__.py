"""Projections: read models that are made of the feed, each event exactly once."""
