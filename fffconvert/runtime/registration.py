"""Definitions of torch ops that may be made again, by notebooks that drop this package and import it anew.

torch takes each definition and kernel once in a process. Those registered here look up the newest function
when they are called, so that models made before a reload compute with the same kernels as later ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from fffconvert.errors import FFFError

NAMESPACE = "fffconvert"
_NEWEST: dict[tuple[str, str], Any] = vars(torch.ops.fffconvert).setdefault("newest", {})
"""Schemas and functions by op and kind. It lies with the ops, which outlive the modules of this package."""

Function = TypeVar("Function", bound=Callable[..., Any])


def define(op: str, schema: str) -> None:
    """Define an op, if it is not yet.

    Raises:
        FFFError: Another release of this package has defined it in this process.
    """
    found = _NEWEST.setdefault((op, "schema"), schema)
    if found != schema:
        raise FFFError(
            "another release of fffconvert was imported in this process, whose op "
            f"{op} takes other arguments; restart Python"
        )
    if not hasattr(getattr(torch.ops, NAMESPACE), op):
        torch.library.define(f"{NAMESPACE}::{op}", schema)


def kernel(op: str) -> Callable[[Function], Function]:
    """Make a function the op's kernel on every device."""
    return _registered(op, "kernel", lambda name, function: torch.library.impl(name, "default", function))


def fake(op: str) -> Callable[[Function], Function]:
    """Make a function what tells the op's shapes and types."""
    return _registered(op, "fake", lambda name, function: torch.library.register_fake(name, function))


def autograd(op: str, backward: Callable[..., Any], setup: Callable[..., Any] | None = None) -> None:
    """Say how the op is differentiated, as `torch.library.register_autograd`."""

    def register(name: str, function: Callable[..., Any]) -> None:
        def save(ctx: Any, inputs: Any, output: Any) -> Any:
            return _NEWEST[op, "setup"](ctx, inputs, output)

        torch.library.register_autograd(name, function, setup_context=save if setup is not None else None)

    _NEWEST[op, "setup"] = setup
    _registered(op, "autograd", register)(backward)


def _registered(
    op: str, kind: str, register: Callable[[str, Callable[..., Any]], Any]
) -> Callable[[Function], Function]:
    def take(function: Function) -> Function:
        first = (op, kind) not in _NEWEST
        _NEWEST[op, kind] = function
        if first:

            def newest(*arguments: Any) -> Any:
                return _NEWEST[op, kind](*arguments)

            register(f"{NAMESPACE}::{op}", newest)
        return function

    return take
