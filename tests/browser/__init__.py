"""The admin in a real browser: Chromium, driven by Playwright. Run it with ``tox -e browser``."""
