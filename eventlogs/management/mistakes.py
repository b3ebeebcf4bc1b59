"""Exit codes, and the errors that end a subcommand with them."""

from __future__ import annotations

from typing import Final

from django.core.management.base import CommandError

FINDINGS: Final = 1
NOT_DONE: Final = 2  # as argparse exits for options that it cannot read
INTERRUPTED: Final = 130  # as a shell reports SIGINT
PIPE_CLOSED: Final = 141  # as a shell reports SIGPIPE
TERMINATED: Final = 143  # as a shell reports SIGTERM


def mistake(message: str) -> CommandError:
    """Return the error for a mistake of the user: a message, no traceback, exit code 2."""
    return CommandError(message, returncode=NOT_DONE)


def findings(message: str) -> CommandError:
    """Return the error for a finished job that has findings: exit code 1."""
    return CommandError(message, returncode=FINDINGS)
