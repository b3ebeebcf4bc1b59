"""The check of a number that a caller passes: one message for all of them."""

from __future__ import annotations


def check_int(name: str, value: int, *, lowest: int = 0, highest: int | None = None) -> None:
    """
    Raise ValueError if ``value`` is not an int from ``lowest`` to ``highest``.

    Both limits are allowed values; None is no upper limit. A bool is no int here. ``name`` is that
    of the argument, for the message.
    """
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or not lowest <= value <= (value if highest is None else highest):
        limit = f"of {lowest:,} or more" if highest is None else f"from {lowest:,} to {highest:,}"
        raise ValueError(f"{name} is {value!r}. It must be an int {limit}.")
