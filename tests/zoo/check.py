"""What is checked of one model: that its blocks are found, and replaced exactly or refused."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fffconvert import surgery
from fffconvert.forward import tensors_in
from fffconvert.location import locate


@dataclass(frozen=True)
class Outcome:
    """How the check of a model ended.

    Attributes:
        status: "replaced exactly", "no blocks", "refused" or "wrong".
        detail: Why, in one line.
    """

    status: str
    detail: str = ""


def check(model: nn.Module, inputs: dict[str, Any], *, train: bool = True) -> Outcome:
    """Replace every block of a model by an exact copy and compare what the model does.

    Args:
        model: In eval mode; without randomness in train mode, if `train`.
        inputs: Keyword arguments of its forward.
        train: Compare in train mode too, with gradients.
    """
    located = locate(model, inputs)
    sites = surgery.verify(model, located, inputs)
    refused = "; ".join(sorted({f"{skip.name}: {skip.reason}" for skip in sites.skipped}))
    if not sites:
        return Outcome("refused" if sites.skipped else "no blocks", refused)
    before = behaviour(model, inputs, train)
    surgery.replace(model, {site: site.dense() for site in sites})
    after = behaviour(model, inputs, train)
    surgery.restore(model)
    for name, error in differences(before, after).items():
        if not error <= 1e-5:
            return Outcome("wrong", f"{name} differ by {error:.1e} after replacement")
    if any(error != 0 for error in differences(before, behaviour(model, inputs, train)).values()):
        return Outcome("wrong", "the model is another after its blocks were put back")
    return Outcome("replaced exactly", f"{len(sites)} blocks" + (f"; skipped {refused}" if refused else ""))


def behaviour(model: nn.Module, inputs: dict[str, Any], train: bool) -> dict[str, list[Tensor]]:
    """Outputs in eval mode and, if asked, in train mode with the gradient of the first parameter."""
    model = copy.deepcopy(model)  # train mode changes the statistics of batch norms
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what models of speech draw their masks from
    with torch.no_grad():
        found = {"outputs": tensors_in(model.eval()(**inputs))}
    if train:
        torch.manual_seed(0)
        outputs = tensors_in(model.train()(**inputs))
        found["outputs in train mode"] = [output.detach() for output in outputs]
        first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        loss = sum(o.pow(2).mean() for o in outputs if o.is_floating_point() and o.requires_grad)
        if isinstance(loss, Tensor):
            gradient = torch.autograd.grad(loss, first, allow_unused=True)[0]
            found["gradients"] = [] if gradient is None else [gradient]
    return found


def differences(before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]) -> dict[str, float]:
    """Largest difference of each kind of result, relative to the larger of 1 and the largest value."""
    return {name: max(map(difference, before[name], after[name]), default=0.0) for name in before}


def difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape or not one.is_floating_point():
        return 0.0 if torch.equal(one, other) else float("inf")
    if not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    one, other = one[one.isfinite()], other[other.isfinite()]
    return float((one - other).abs().max() / one.abs().max().clamp(min=1)) if one.numel() else 0.0
