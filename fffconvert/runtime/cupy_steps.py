"""The steps of the ops on a GPU, one kernel launch or a few each.

Nothing here waits for the GPU or copies from it, so everything can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fffconvert.errors import FFFError
from fffconvert.runtime.activations import ACTIVATIONS
from fffconvert.runtime.cupy_kernels import (
    CHUNK,
    FLOATS,
    TENSOR_TILE,
    TILE,
    TOP_LEVELS,
    Build,
    build_for,
    card,
    launch,
    rows_argument,
    sums_per_block,
)
from fffconvert.runtime.weights import Scales, Weights

STATIC_SHARED = 48 << 10
"""Shared memory in bytes that every card gives a block."""
FEW_BLOCKS = 1024
"""Fewer blocks than this would leave parts of a large card idle."""
IDENTITY = ACTIVATIONS["identity"].number
BIASES = {"in_weight": "in_bias", "leaf_in_weight": "leaf_in_bias", "leaf_gate_weight": "leaf_gate_bias"}
"""The bias that belongs to a weight."""


class Layer(NamedTuple):
    """One layer as the kernels take it.

    Attributes:
        build: The copy of the kernels.
        device: Where everything is.
        trees: Number of trees T.
        levels: Levels of a tree, D + 1.
        activation: Its number in `ACTIVATIONS`.
        rows: The weights that have rows, by name, as the kernels' `Rows`; absent ones are null.
        kept: The tensors that `rows` points to.
    """

    build: Build
    device: torch.device
    trees: int
    levels: int
    activation: int
    rows: dict[str, np.ndarray[Any, Any]]
    kept: list[Tensor]

    def run(self, name: str, grid: tuple[int, ...], threads: int, *arguments: Any, shared: int = 0) -> None:
        """Launch a kernel."""
        launch(self.device, self.build, name, grid, threads, arguments, shared)

    def width(self, name: str) -> int:
        """Numbers in a row of this weight."""
        return int(self.rows[name].view(np.int64)[4])

    def count(self, name: str) -> int:
        """Rows of this weight that a token meets in one tree; 0 if there is no such weight."""
        return int(self.rows[name].view(np.int64)[7])


def layer_for(x: Tensor, weights: Weights, scales: Scales, activation: str, *others: Tensor) -> Layer:
    """Prepare a layer for launches.

    Args:
        x: [tokens, d_in], contiguous.
        weights: The trees.
        scales: What int8 rows are multiplied by.
        activation: A key of `ACTIVATIONS`.
        others: More tokens that kernels will read, contiguous.
    """
    levels = weights.depth + 1
    tensors = {name: None if w is None else w.contiguous() for name, w in weights._asdict().items()}
    factors = {name: None if s is None else s.contiguous() for name, s in scales._asdict().items()}
    leaf_width = 0 if weights.leaf_in_weight is None else weights.leaf_in_weight.shape[2]
    shapes = {
        "in_weight": (1, levels),
        "out_weight": (weights.branches, levels),
        "leaf_constant": (0, 1),
        "leaf_in_weight": (0, leaf_width),
        "leaf_gate_weight": (0, leaf_width),
        "leaf_out_weight": (0, leaf_width),
    }
    rows = {
        name: rows_argument(
            tensors[name],
            factors[name],
            tensors[BIASES[name]] if name in BIASES else None,
            branches=branches,
            count=count,
        )
        for name, (branches, count) in shapes.items()
    }
    read = tuple(tensors[name] for name in shapes)
    odd = next((t.dtype for t in read if t is not None and t.dtype != weights.in_weight.dtype), None)
    if odd is not None:
        raise FFFError(
            f"rows are {odd}; expected {weights.in_weight.dtype} as in_weight: store them in one type"
        )
    return Layer(
        build=build_for(x, weights.in_weight, (x, *read, *others)),
        device=x.device,
        trees=len(weights.in_weight),
        levels=levels,
        activation=ACTIVATIONS[activation].number,
        rows=rows,
        kept=[t for t in (*tensors.values(), *factors.values()) if t is not None],
    )


def fits_one_block(layer: Layer) -> bool:
    """Whether shared memory holds what `token_forward` remembers of one token."""
    return _token_shared(layer) + 1024 <= STATIC_SHARED


def token_forward(
    x: Tensor, y: Tensor, logits: Tensor | None, leaf: Tensor | None, bias: Tensor | None, layer: Layer
) -> None:
    """Everything in one launch, a block for each token.

    Args:
        x: [tokens, d_in]
        y: [tokens, d_out], written.
        logits: [tokens, T, D + 1], written if given; likewise `leaf`.
        leaf: [tokens, T]
        bias: [d_out]
        layer: The trees.
    """
    lanes = [-(-layer.width(name) // layer.build.vector) for name in ("in_weight", "out_weight")]
    warps = min(8, _power(max(-(-max(lanes) // 32), min(8, layer.trees))))
    team = min(max(1, warps // _power(layer.trees)), _power(-(-lanes[0] // 32)))
    layer.run(
        "token_forward",
        (len(x),),
        32 * warps,
        *(x, y, logits, leaf, *layer.rows.values(), bias, _type(bias), layer.trees, layer.activation, team),
        shared=_token_shared(layer),
    )


def walk(x: Tensor, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Find all paths, six levels between two sorts of the tokens by place.

    Args:
        x: [tokens, d_in]
        layer: The trees.

    Returns:
        logits: [tokens, T, D + 1] in float32.
        leaf: [tokens, T], int64.
        order: [T, tokens], the tokens of each tree sorted by leaf, int64.
    """
    tokens, trees, levels = len(x), layer.trees, layer.levels
    logits = x.new_empty(tokens, trees, levels, dtype=torch.float32)
    leaf = x.new_empty(tokens, trees, dtype=torch.int64)
    rows, order = layer.rows["in_weight"], None
    shared = _staged_bytes(x)
    for first in range(0, levels, TOP_LEVELS):
        last = min(first + TOP_LEVELS, levels)
        if first == 0 and layer.build.tensor:
            grid = (-(-tokens // TENSOR_TILE), trees)
            layer.run("top_levels", grid, 128, x, logits, leaf, rows, tokens, trees, last)
        else:
            layer.run(
                "walk_tiles",
                (-(-tokens // TILE), trees),
                128,
                *(x, logits, leaf, order, rows, tokens, trees, first, last, int(shared > 0)),
                shared=shared,
            )
        order = sort_by_leaf(leaf)
    assert order is not None
    return logits, leaf, order


def sort_by_leaf(leaf: Tensor) -> Tensor:
    """The tokens of each tree, those that arrive at one leaf next to each other.

    Args:
        leaf: [tokens, T]

    Returns:
        [T, tokens], int64.
    """
    # Fewer bits are sorted sooner, and a stable sort makes runs repeat to the bit.
    places = leaf.T.to(torch.int32).contiguous()
    return torch.sort(places, dim=1, stable=True).indices.contiguous()


def dot(vectors: Tensor, name: str, order: Tensor, leaf: Tensor, layer: Layer) -> Tensor:
    """Multiply each token with the rows that it meets, and add their bias if they have one.

    Args:
        vectors: [tokens, d]
        name: Of the weight, [T, ..., d].
        order: [T, tokens]
        leaf: [tokens, T]
        layer: The trees.

    Returns:
        [tokens, T, rows], float32.
    """
    tokens, count = len(vectors), layer.count(name)
    out = vectors.new_empty(tokens, layer.trees, count, dtype=torch.float32)
    arguments = (vectors, out, order, leaf, layer.rows[name], tokens, layer.trees)
    if layer.build.tensor and name.startswith("leaf"):
        grid = (-(-tokens // TENSOR_TILE), layer.trees, -(-count // TENSOR_TILE))
        layer.run("dot_leaves", grid, 128, *arguments)
    else:
        blocks = -(-tokens // TILE) * layer.trees
        parts = max(1, min(count, FEW_BLOCKS // blocks))
        shared = _staged_bytes(vectors)
        grid = (-(-tokens // TILE), layer.trees, parts)
        layer.run("dot_rows", grid, 128, *arguments, int(shared > 0), shared=shared)
    return out


class Term(NamedTuple):
    """A sum over the rows that a token meets: activation(factor) * gate * row.

    Attributes:
        name: Of the weight.
        factor: [tokens, T, rows], float32; None for ones.
        activation: Number of what `factor` goes through.
        gate: [tokens, T, rows], float32; None for ones.
    """

    name: str
    factor: Tensor | None = None
    activation: int = IDENTITY
    gate: Tensor | None = None


def sum_terms(
    y: Tensor, terms: list[Term], order: Tensor, leaf: Tensor, bias: Tensor | None, layer: Layer
) -> None:
    """Sum terms over all trees.

    Args:
        y: [tokens, d], written.
        terms: At least one; all have rows of width d.
        order: [T, tokens]
        leaf: [tokens, T]
        bias: [d]
        layer: The trees.
    """
    tokens, width = y.shape
    sums = y if y.dtype == torch.float32 else torch.empty_like(y, dtype=torch.float32)
    lanes = -(-width // layer.build.vector)
    threads = min(256, 32 * -(-lanes // 32))
    grid = (-(-tokens // sums_per_block(layer.build)), -(-lanes // threads))
    steps = [(tree, term) for tree in range(layer.trees) for term in terms]
    for step, (tree, term) in enumerate(steps):
        layer.run(
            "sum_rows",
            grid,
            threads,
            *(sums, y if step + 1 == len(steps) else None, order, leaf, term.factor, term.gate),
            *(layer.rows[term.name], bias if step == 0 else None, _type(bias)),
            *(tokens, layer.trees, tree, term.activation, int(step > 0)),
        )


def row_gradients(
    grad: Tensor,
    grad_bias: Tensor | None,
    vectors: Tensor,
    factor: Tensor | None,
    name: str,
    order: Tensor,
    leaf: Tensor,
    layer: Layer,
) -> None:
    """Add each token times its factors to the rows that it meets.

    Args:
        grad: The gradient of the weight `name`, zeros.
        grad_bias: That of its bias, zeros in float32.
        vectors: [tokens, d]
        factor: [tokens, T, rows], float32; None for ones.
        name: Of the weight.
        order: [T, tokens]
        leaf: [tokens, T]
        layer: The trees.
    """
    tokens, width = vectors.shape
    count, chunks = layer.count(name), -(-tokens // CHUNK)
    lanes = -(-width // layer.build.vector)
    threads = min(256, 32 * -(-lanes // 32))
    columns = -(-lanes // threads)
    parts = vectors.new_empty(count, chunks, 2, width + 1, dtype=torch.float32)
    for tree in range(layer.trees):
        written = (grad[tree], None if grad_bias is None else grad_bias[tree], parts)
        common = (layer.rows[name], tokens, layer.trees, tree)
        grid = (chunks, count, columns)
        layer.run("sum_runs", grid, threads, vectors, factor, order, leaf, *written, *common)
        if chunks > 1:
            grid = (chunks - 1, count, columns)
            layer.run("join_runs", grid, threads, order, leaf, *written, *common)


def _staged_bytes(vectors: Tensor) -> int:
    """Shared memory for a tile of tokens; 0 if a block cannot have so much."""
    needed = TILE * vectors.shape[1] * vectors.element_size()
    return needed if needed <= card(vectors.device).shared_bytes else 0


def _token_shared(layer: Layer) -> int:
    return 4 * layer.trees * (1 + layer.levels + layer.count("leaf_in_weight"))


def _type(vector: Tensor | None) -> int:
    return 0 if vector is None else FLOATS.index(vector.dtype)


def _power(number: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (number - 1).bit_length()
