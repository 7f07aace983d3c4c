"""Name what a hidden graph computes by comparing it with the known activations."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fffconvert.location.sites import BlockKind
from fffconvert.runtime.activations import ACTIVATIONS

CUSTOM = "custom"
TOLERANCE = 2e-5
"""Below the 5e-4 that lie between the two forms of GELU, above rounding in float32."""


def name_activation(hidden: fx.GraphModule, kind: BlockKind, d_hidden: int) -> str:
    """The name of the activation in a hidden graph.

    Args:
        hidden: The graph, from up-projections [..., width] to [..., d_hidden].
        kind: Plain: activation(h); gated: activation(g) * u; fused gated: g and u are halves of one tensor.
        d_hidden: Width of its result.

    Returns:
        A key of `ACTIVATIONS`, or "custom" if it is none of them.
    """
    if any(buffer.is_meta for buffer in hidden.buffers()):
        return CUSTOM
    key = (hidden.code, kind, d_hidden)
    if next(hidden.buffers(), None) is not None:
        return _compare(hidden, kind, d_hidden)
    if key not in _named:
        _named[key] = _compare(hidden, kind, d_hidden)
    return _named[key]


_named: dict[tuple[str, BlockKind, int], str] = {}
"""Names found so far: the layers of a model all have the same hidden graph."""


def _compare(hidden: fx.GraphModule, kind: BlockKind, d_hidden: int) -> str:
    generator = torch.Generator().manual_seed(0)
    device = next((buffer.device for buffer in hidden.buffers()), torch.device("cpu"))
    arguments = [_grid(d_hidden, generator, device) for _ in range(1 if kind is BlockKind.PLAIN else 2)]
    with torch.no_grad():
        if kind is BlockKind.FUSED_GATED:
            contiguous = torch.cat(arguments, -1)
            interleaved = torch.stack(arguments, -1).flatten(-2)
            results = [hidden(contiguous), hidden(interleaved)]
        else:
            results = [hidden(*arguments)]
        for name, activation in ACTIVATIONS.items():
            if kind is BlockKind.PLAIN:
                expected = [activation.fn(arguments[0])]
            else:
                g, u = arguments
                expected = [activation.fn(g) * u, g * activation.fn(u)]
            if any(_equal(result, e) for result in results for e in expected):
                return name
    return CUSTOM


def _grid(width: int, generator: torch.Generator, device: torch.device) -> Tensor:
    points = torch.linspace(-6, 6, 97, dtype=torch.float32)[:, None] + 0.1 * torch.rand(
        97, width, generator=generator, dtype=torch.float32
    )
    return points[torch.randperm(97, generator=generator)].to(device)


def _equal(result: Tensor, expected: Tensor) -> bool:
    return result.shape == expected.shape and torch.allclose(
        result.float(), expected, rtol=TOLERANCE, atol=TOLERANCE
    )
