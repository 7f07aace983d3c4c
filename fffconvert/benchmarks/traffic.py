"""How many bytes one call has to move, by counting: each row that a batch visits once, inputs and outputs."""

from __future__ import annotations

from torch import Tensor, nn

from fffconvert.runtime import Scales, Weights


def visited_bytes(weights: Weights, scales: Scales, leaf: Tensor) -> int:
    """Bytes of the distinct rows on a batch's paths, with their biases and scales, as they are stored.

    Args:
        weights: The trees.
        scales: Of int8 rows.
        leaf: [tokens, T], the leaves that the batch reaches.
    """
    levels = weights.depth + 1

    def distinct(level: int) -> int:
        """Places that the tokens visit at a level, in all trees; the leaves are the level after the last."""
        return sum(len(tree.unique()) for tree in (leaf >> (levels - level)).T)

    nodes = sum(distinct(level) for level in range(levels))
    outputs = nodes if weights.branches == 1 else sum(distinct(level + 1) for level in range(levels))
    rows = {"in_weight": nodes, "in_bias": nodes, "out_weight": outputs}
    leaves = distinct(levels)
    return sum(
        rows.get(name, leaves) * tensor[0, 0].numel() * tensor.element_size()
        for group in (weights, scales)
        for name, tensor in group._asdict().items()
        if tensor is not None
    )


def parameter_bytes(block: nn.Module) -> int:
    """Bytes of all parameters of a block."""
    return sum(p.numel() * p.element_size() for p in block.parameters())
