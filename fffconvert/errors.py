"""The one error a user can act on."""

from __future__ import annotations


class FFFError(ValueError):
    """Bad usage or bad input.

    The message is one line that says what was found, what was expected and what to do. The command line
    prints it without a traceback and exits with status 2.
    """
