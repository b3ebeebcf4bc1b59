"""The reviewed files of event schemas, ``events.lock.json``, and drafts of upcasters."""
