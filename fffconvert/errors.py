"""The one error a user can act on."""

from __future__ import annotations


class FFFError(ValueError):
    """Bad usage or bad input.

    The message is one line that says what was found, what was expected and what to do. The command line
    prints it without a traceback and exits with status 2.
    """


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
