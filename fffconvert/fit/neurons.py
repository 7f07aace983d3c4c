"""The neurons of an original block, as rows that a leaf block can take over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fffconvert.errors import FFFError
from fffconvert.location import FFNSite
from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.runtime.weights import skip_small

PROBES = 16
TOLERANCE = 1e-3
TINY = 1e-30


@dataclass(frozen=True)
class Neurons:
    """Neurons a(w x + b), or a(w x + b) (g x + h) where they are gated.

    Attributes:
        rows: [1, n, d_in], w; [2, n, d_in], w and g, where they are gated.
        bias: [1, n] or [2, n], likewise.
        out: [n, d_out], what each adds to the output, times its value.
        activation: Name of the activation a.
        threshold: [n], absolute values of the activation up to which a neuron counts as 0; None for none.
    """

    rows: Tensor
    bias: Tensor
    out: Tensor
    activation: str
    threshold: Tensor | None = None

    @property
    def gated(self) -> bool:
        """Whether the activation is multiplied by a second map."""
        return len(self.rows) == 2

    def __len__(self) -> int:
        return self.rows.shape[1]

    def __getitem__(self, index: Tensor) -> Neurons:
        """Some of the neurons."""
        threshold = None if self.threshold is None else self.threshold[index]
        return Neurons(self.rows[:, index], self.bias[:, index], self.out[index], self.activation, threshold)

    def __call__(self, x: Tensor) -> Tensor:
        """Their values on x: [tokens, d_in] to [tokens, n]."""
        values = skip_small(self.activations(x), self.threshold)
        if self.gated:
            values *= torch.addmm(self.bias[1], x, self.rows[1].T)
        return values

    def activations(self, x: Tensor) -> Tensor:
        """a(w x + b) on x: [tokens, d_in] to [tokens, n]."""
        return ACTIVATIONS[self.activation].fn(torch.addmm(self.bias[0], x, self.rows[0].T))

    def sparse(self, x: Tensor, weight: Tensor, sparsity: float) -> Neurons:
        """The neurons with a threshold each, such that tokens skip a share of them.

        A neuron's part in the output is its activation times what usually multiplies it: the root mean square
        of its gate, the length of its output row. What is smallest by that is skipped.

        Args:
            x: [tokens, d_in]
            weight: [tokens]
            sparsity: The share, over tokens and neurons, above 0.

        Reference: arXiv 2404.08763 (CATS), with one level for all neurons of a block instead of one each.
        """
        activations, values = self.activations(x).abs(), self(x)
        gates = torch.where(activations > 0, values / activations, 0.0)
        usual = (weight @ gates.square() / weight.sum()).sqrt() * self.out.norm(dim=1)
        parts = (activations * usual).flatten()
        level = parts.kthvalue(max(1, round(sparsity * len(parts)))).values
        threshold = torch.where(usual > 0, level / usual.clamp(min=TINY), torch.inf)
        return replace(self, threshold=threshold)


def neurons_of(site: FFNSite) -> Neurons:
    """The neurons of a located block, in float32 on the CPU.

    Which of two projections the activation applies to, and how a fused projection is split, is found by
    comparing with the block's own hidden layer on a few inputs.

    Raises:
        FFFError: The hidden layer is no pointwise activation of the projections that `Neurons` can express.
    """
    if site.activation in ACTIVATIONS:
        block = site.dense().to("cpu", torch.float32)
        x = torch.randn(PROBES, site.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        with torch.no_grad():
            expected = block.hidden(*[up(x) for up in block.dense_up])
            for neurons in _readings(site):
                if torch.allclose(neurons(x), expected, rtol=TOLERANCE, atol=TOLERANCE):
                    return neurons
    raise FFFError(
        f"block {site.name} has a hidden layer that is more than activation(linear) [x linear], so leaf "
        "blocks cannot take over its neurons; convert it with leaf width 0, or leave it out with `exclude`"
    )


def _readings(site: FFNSite) -> Iterator[Neurons]:
    """What the block's projections can mean."""
    rows = [projection.weight.detach().to("cpu", torch.float32) for projection in site.up]
    bias = [
        torch.zeros(len(weight), dtype=torch.float32)
        if p.bias is None
        else p.bias.detach().to("cpu", torch.float32)
        for p, weight in zip(site.up, rows, strict=True)
    ]
    out = site.down.weight.detach().to("cpu", torch.float32).T
    if not site.gated:
        yield Neurons(rows[0][None], bias[0][None], out, site.activation)
        return
    if len(rows) == 2:
        readings = [(torch.stack(rows), torch.stack(bias))]
    else:  # one projection for both, one half after the other or by turns
        d_in = site.d_model
        readings = [
            (rows[0].view(2, -1, d_in), bias[0].view(2, -1)),
            (rows[0].view(-1, 2, d_in).transpose(0, 1), bias[0].view(-1, 2).T),
        ]
    for both, biases in readings:
        yield Neurons(both, biases, out, site.activation)
        yield Neurons(both.flip(0), biases.flip(0), out, site.activation)
