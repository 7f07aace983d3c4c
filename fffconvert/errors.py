"""The one error a user can act on."""

from __future__ import annotations

import importlib


class FFFError(ValueError):
    """Bad usage or bad input.

    The message is one line that says what was found, what was expected and what to do. The command line
    prints it without a traceback and exits with status 2.
    """


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def need(package: str, needed_by: str, extra: str) -> None:
    """Ask early whether an optional package is there.

    Args:
        package: What is imported.
        needed_by: What asks for it.
        extra: The extra of this package that brings it.

    Raises:
        FFFError: It is not installed.
    """
    try:
        importlib.import_module(package)
    except ImportError:
        raise FFFError(f"{needed_by} needs {package}; pip install 'fffconvert[{extra}]'") from None
