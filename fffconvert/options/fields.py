"""Options of a verb, written once: one dataclass is its signature in Python, its flags, and its YAML.

The name, type and default of an option are those of the field, its help is the field's line under
`Attributes:`. Errors name an option in backquotes, as in `max_drop`; the command line shows its flag instead.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
First = TypeVar("First")
Options = TypeVar("Options")
Result = TypeVar("Result")

_ENTRY = re.compile(r"^    (\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)


def option(
    default: Any = dataclasses.MISSING,
    *,
    flag: str = "",
    short: str = "",
    metavar: str = "",
    required: bool = False,
    python: bool = False,
) -> Any:
    """A field whose flag is not plainly its name.

    Args:
        default: Its default.
        flag: Name of the flag, such as `--task` for `tasks`.
        short: A short one, such as `-o`.
        metavar: How its value is called in the help.
        required: The command line has no default for it.
        python: It holds what no command line can: a tokenizer, tensors.
    """
    metadata = {"flag": flag, "short": short, "metavar": metavar, "required": required, "python": python}
    return dataclasses.field(default=default, metadata=metadata)


def fields_of(options: type) -> list[dataclasses.Field[Any]]:
    """The fields of an options class, its own before those that it shares with others."""
    own = [name for cls in options.__mro__ for name in vars(cls).get("__annotations__", {})]
    return sorted(dataclasses.fields(options), key=lambda field: own.index(field.name))


def descriptions(options: type) -> dict[str, str]:
    """What the docstring of an options class says of each field; that of an inherited one where it stands."""
    found: dict[str, str] = {}
    for cls in reversed(options.__mro__):
        _, _, entries = (inspect.cleandoc(cls.__doc__ or "")).partition("Attributes:\n")
        found |= {name: " ".join(text.split()) for name, text in _ENTRY.findall(entries)}
    return found


def values_of(options: Any) -> dict[str, Any]:
    """The options by name, as a verb takes them."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


def verb(
    options: Callable[P, Options],
) -> Callable[[Callable[[First, Options], Result]], Callable[Concatenate[First, P], Result]]:
    """Give a function `(first, options)` the signature `(first, …)` with every option by its name.

    Its docstring has one line in `Args:` for the first argument, and none for `options`: theirs follow.
    """

    def decorate(function: Callable[[First, Options], Result]) -> Callable[Concatenate[First, P], Result]:
        first = next(iter(inspect.signature(function).parameters.values()))
        made: Callable[Concatenate[First, P], Result] = _with_signature(function, options, first)
        return made

    return decorate


def verb_of_options(
    options: Callable[P, Options],
) -> Callable[[Callable[[Options], Result]], Callable[P, Result]]:
    """The same for a function of options alone."""

    def decorate(function: Callable[[Options], Result]) -> Callable[P, Result]:
        made: Callable[P, Result] = _with_signature(function, options)
        return made

    return decorate


def _with_signature(function: Callable[..., Any], options: Any, *first: inspect.Parameter) -> Any:
    """A function that takes the first parameters and every option by its name."""
    given = inspect.signature(options).parameters
    named = [given[field.name] for field in fields_of(options)]
    signature = inspect.Signature(
        [*(p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in first), *named],
        return_annotation=inspect.signature(function).return_annotation,
    )

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{function.__name__}() {error}") from None
        return function(*(bound.pop(parameter.name) for parameter in first), options(**bound))

    del call.__wrapped__  # whoever reads signatures would read that of the function
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__doc__ = _documented(function.__doc__ or "", options)
    return call


def _documented(doc: str, options: Any) -> str:
    """A docstring with the options among its arguments."""
    told = descriptions(options)
    lines = "".join(f"\n    {field.name}: {told[field.name]}" for field in fields_of(options))
    plain = inspect.cleandoc(doc)
    match = re.search(r"^Args:\n(?:    .*(?:\n|$))*", plain, re.MULTILINE)
    if match is None:
        raise TypeError("a verb has a line Args: in its docstring")
    return f"{plain[: match.end()].rstrip()}{lines}\n{plain[match.end() :]}"
