"""Small helpers that know nothing of logs and events."""
