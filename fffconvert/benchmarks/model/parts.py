"""Where the time of a forward pass goes: embedding, attention, feedforward, norm, rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from torch import nn

from fffconvert.errors import FFFError
from fffconvert.location import locate
from fffconvert.tree import FFFLayer

PARTS = ("embedding", "attention", "feedforward", "norm", "rest")


def part_times(model: nn.Module, call: Callable[[], Any], calls: int) -> dict[str, float]:
    """Time the modules of a model while it runs.

    Time counts for the innermost module that belongs to a part; what none claims is "rest". The clock reads
    themselves, a microsecond or so a module, are within.

    Args:
        model: The model.
        call: Runs it once.
        calls: How often.

    Returns:
        Mean milliseconds of one call for each of `PARTS`.
    """
    spent: dict[str, int] = defaultdict(int)
    stack = ["rest"]
    last = perf_counter_ns()

    def switch() -> None:
        nonlocal last
        now = perf_counter_ns()
        spent[stack[-1]] += now - last
        last = now

    def enter(part: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            switch()
            stack.append(part)

        return hook

    def leave(*_: Any) -> None:
        switch()
        stack.pop()

    handles = []
    for module, part in _claims(model).items():
        handles += [module.register_forward_pre_hook(enter(part)), module.register_forward_hook(leave)]
    try:
        call()
        spent.clear()
        last = perf_counter_ns()
        for _ in range(calls):
            call()
        switch()
    finally:
        for handle in handles:
            handle.remove()
    return {part: spent[part] / calls / 1e6 for part in PARTS}


def _claims(model: nn.Module) -> dict[nn.Module, str]:
    """The part that each module belongs to, by its kind and name."""
    claims: dict[nn.Module, str] = {}
    feedforward = _feedforward(model)
    for module in model.modules():
        kind = type(module).__name__.lower()
        if isinstance(module, FFFLayer) or module in feedforward:
            claims[module] = "feedforward"
        elif "norm" in kind:
            claims[module] = "norm"
        elif isinstance(module, nn.Embedding) or kind.endswith("embeddings"):
            claims[module] = "embedding"
        elif "attention" in kind:
            claims[module] = "attention"
    return claims


def _feedforward(model: nn.Module) -> set[nn.Module]:
    """Modules of dense blocks, and what stands in the place of those replaced."""
    found: set[nn.Module] = set()
    try:
        sites = locate(model)
    except FFFError:  # a converted model may hold nothing to locate
        return found
    for site in sites:
        placement = site.placement
        for path in (*placement.entry, *placement.passed, *placement.exit):
            found.add(model.get_submodule(path))
    return found
