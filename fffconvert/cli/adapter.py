"""A command out of an options dataclass: flags, defaults and help are those of its fields."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from fffconvert.cli.running import Output, one_line_errors
from fffconvert.cli.values import assignments, numbers, pair, pairs, words, written
from fffconvert.options import TextSource
from fffconvert.options.fields import descriptions, fields_of

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks, and what other libraries log.")]


LISTS: dict[str, tuple[Callable[[str], Any], str]] = {
    "tuple[str, ...]": (words, "A,B"),
    "tuple[int, ...]": (numbers, "N,N"),
    "tuple[tuple[int, int], ...]": (pairs, "NxN,NxN"),
    "tuple[int, int]": (pair, "NxN"),
}
"""What is written with commas or an x: how it is read, and how the help calls it."""
PLAIN = {"int": int, "float": float, "str": str, "bool": bool, "Path": Path, "Plan | Path": Path, "Any": str}
PLAIN |= {"Recipe | Path": Path}
REPEATED = ("Iterable[Any]", "Sequence[str]", "Sequence[str | Path]", "Mapping[str, Any]")
"""What is given by a flag that may be repeated."""


def command(
    app: typer.Typer, options: type | None = None, name: str | None = None
) -> Callable[..., Callable[..., None]]:
    """Register a function as a command that takes a dataclass of options.

    The function is called with `out`, its own positional arguments, `options` and its own further flags.

    Args:
        app: Where.
        options: The dataclass; None for a command that has none.
        name: Of the command; by default that of the function.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        fields = [] if options is None else [f for f in fields_of(options) if not f.metadata.get("python")]
        flags = {field.name: _flag(field) for field in fields}
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values()]
        own = [p for p in own if p.name not in ("out", "options")]
        first = [p for p in own if p.kind is not p.KEYWORD_ONLY]
        parameters = [
            *(p.replace(kind=p.KEYWORD_ONLY) for p in first),
            *(_parameter(field, flags[field.name], options) for field in fields),
            *(p for p in own if p.kind is p.KEYWORD_ONLY),
            *(
                inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
                for n, kind in (("as_json", AsJson), ("debug", Debug))
            ),
        ]

        def run(out: Output, **given: Any) -> None:
            values = {field.name: _value(field, flags[field.name], given.pop(field.name)) for field in fields}
            if options is not None:
                given["options"] = options(**values)
            function(out, *(given.pop(p.name) for p in first), **given)

        run.__doc__, run.__name__ = function.__doc__, function.__name__
        made = one_line_errors(run, flags)
        made.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        made.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name or function.__name__)(made)
        return function

    return register


def _flag(field: dataclasses.Field[Any]) -> str:
    return field.metadata.get("flag") or f"--{field.name.replace('_', '-')}"


def _kind(field: dataclasses.Field[Any]) -> str:
    return str(field.type).removesuffix(" | None")


def _parameter(field: dataclasses.Field[Any], flag: str, options: Any) -> inspect.Parameter:
    """One flag, for typer."""
    required = field.metadata.get("required") or field.default is dataclasses.MISSING
    default, kind = field.default, _kind(field)
    names = [f"{flag}/--no-{flag[2:]}" if default is True else flag, field.metadata.get("short")]
    about: dict[str, Any] = {"help": descriptions(options)[field.name].replace("`", "")}
    if metavar := field.metadata.get("metavar"):
        about["metavar"] = metavar
    if kind in REPEATED or (kind == "tuple[str, ...]" and field.metadata.get("flag")):
        annotation: Any = list[str] if required else list[str] | None
        about["help"] += " May be repeated."
        about.setdefault("metavar", "NAME=VALUE" if kind == "Mapping[str, Any]" else "TEXT")
        default = None
    elif kind in LISTS:
        parser, called = LISTS[kind]
        annotation, about["parser"], about["metavar"] = Any, parser, about.get("metavar", called)
        about["show_default"] = written(default) if default and not required else False
        default = None  # typer would parse it
    elif kind in PLAIN:
        annotation = PLAIN[kind] if required else PLAIN[kind] | None if default is None else PLAIN[kind]
    else:
        annotation = getattr(inspect.getmodule(options), kind)
        assert issubclass(annotation, Enum), f"{field.name}: no flag is made of {kind}"
        annotation = annotation | None if default is None else annotation
    option = typer.Option(*filter(None, names), **about)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else default,
        annotation=Annotated[annotation, option],
    )


def _value(field: dataclasses.Field[Any], flag: str, given: Any) -> Any:
    """What the options take, of what typer gives."""
    kind = _kind(field)
    if kind == "Mapping[str, Any]":
        return assignments(flag, given) if given else field.default
    if kind == "Iterable[Any]":
        return [TextSource(text) for text in given] if given else None
    if isinstance(given, list):
        return tuple(given)
    return field.default if given is None and field.default is not dataclasses.MISSING else given
