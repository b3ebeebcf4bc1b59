"""Integrations with other packages; each is imported only by projects that use it."""
