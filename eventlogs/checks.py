"""System checks: what would go wrong later, said at startup."""

from __future__ import annotations
