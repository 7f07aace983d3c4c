"""What every command does alike: errors in one line, exit status, JSON on stdout and nothing beside it."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from fffconvert.errors import FFFError
from fffconvert.records import plain

USAGE, INTERRUPTED, FAILED = 2, 130, 1
PIPE_WIDTH = 160
"""Columns of a table that goes to a file or pipe."""


class OneLineUsage(TyperGroup):
    """Reports a mistake in the arguments in one line, as every other error."""

    def main(self, *args: Any, **options: Any) -> None:
        """Run a command and exit."""
        try:
            status = super().main(*args, **{**options, "standalone_mode": False})
        except Exception as error:
            if not hasattr(error, "format_message"):  # those of click, which typer hides in some versions
                raise
            context = getattr(error, "ctx", None)
            place = context.command_path if context else "fffconvert"
            typer.echo(f"fffconvert: {error.format_message().rstrip('.')}; see {place} --help", err=True)
            status = USAGE
        sys.exit(status or 0)


def one_line_errors(run: Callable[..., None], flags: Mapping[str, str]) -> Callable[..., None]:
    """Let a command end as the manual says: 0 done, 2 bad input, 130 interrupted, 1 anything else.

    Args:
        run: Takes where to print and what was given.
        flags: The flag of each option that errors name in backquotes.

    Returns:
        A command that takes `as_json` and `debug` too: with it errors come with their traceback, and other
        libraries may talk.
    """

    def command(as_json: bool, debug: bool, **given: Any) -> None:
        if not debug:
            _quiet()
        try:
            with output(as_json) as out:
                run(out, **given)
        except KeyboardInterrupt:
            typer.echo("interrupted; nothing is half written: run the same command again", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except FFFError as error:
            if debug:
                raise
            typer.echo(f"fffconvert: {with_flags(str(error), flags)}", err=True)
            raise typer.Exit(USAGE) from None
        except Exception as error:
            if debug:
                raise
            what = (str(error).splitlines() or [""])[0]
            typer.echo(f"fffconvert: {type(error).__name__}: {what} (--debug shows where)", err=True)
            raise typer.Exit(FAILED) from None

    command.__doc__, command.__name__ = run.__doc__, run.__name__
    return command


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """An error with flags in the place of options: `max_drop=0.1` becomes --max-drop 0.1."""

    def shown(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        if name not in flags:
            return match[0]
        if value == "False":
            return f"--no-{flags[name][2:]}"
        return flags[name] if value in (None, "True") else f"{flags[name]} {value}"

    return re.sub(r"`(?P<name>\w+)(?:=(?P<value>[^`]*))?`", shown, message)


@contextmanager
def output(as_json: bool) -> Iterator[Output]:
    """Where a command prints. With `--json`, what anything else prints on stdout goes to stderr."""
    out = Output(sys.stdout, as_json)
    with redirect_stdout(sys.stderr):
        yield out


class Output:
    """A command's output: a document for programs, or tables and lines for people."""

    def __init__(self, stream: Any, as_json: bool) -> None:
        self._as_json = as_json
        self._stream = stream
        width = None if stream.isatty() else PIPE_WIDTH
        self._console = Console(file=stream, width=width, highlight=False, markup=False)

    def show(self, *parts: Any) -> None:
        """Print rich tables or plain lines for people; nothing with `--json`."""
        if not self._as_json:
            for part in parts:
                self._console.print(part, soft_wrap=isinstance(part, str))

    def document(self, values: Any) -> None:
        """Print the JSON document, of records or plain values; nothing without `--json`."""
        if self._as_json:
            self._stream.write(json.dumps(plain(values), indent=2) + "\n")  # in one write


def _quiet() -> None:
    """Warnings in one line each, only errors from transformers and the hub, no bars without a terminal."""
    warnings.formatwarning = lambda message, *_, **__: f"fffconvert: warning: {message}\n"
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")  # of other libraries; read when tqdm is first imported
