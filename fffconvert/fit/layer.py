"""From a block's inputs and outputs to an FFF layer: mean, then trunk, then trees on what is left."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from fffconvert.errors import FFFError
from fffconvert.fit.grow import grow_trees
from fffconvert.fit.leaves import Leaf, LeafFit
from fffconvert.fit.moments import Principal, centre, token_weights
from fffconvert.fit.neurons import Neurons
from fffconvert.fit.trunk import fit_trunk
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer


@torch.no_grad()
def fit_layer(x: Tensor, y: Tensor, spec: FFFSpec, neurons: Neurons | None = None) -> FFFLayer:
    """Fit an FFF layer to a block in closed form. The result depends on the arguments alone.

    Memory: some three times that of `x` and of `y` beside themselves.

    Args:
        x: [tokens, d_in], what the block was given, float32 on the CPU.
        y: [tokens, d_out], what the block made of it.
        spec: Shape of the layer.
        neurons: Those of the original block; needed for leaf blocks.

    Returns:
        The layer, float32 on the CPU.

    Raises:
        FFFError: The activations do not fit the specification or are not finite.
    """
    _check(x, y, spec, neurons)
    weight = token_weights(y)
    principal, z = Principal.of(x, weight)
    mean, residual = centre(y, weight)
    layer = FFFLayer(spec, dtype=torch.float32)
    state = layer.state_dict()
    state["fff_bias"].copy_(mean)
    if spec.trunk:
        inner, outer = fit_trunk(z, principal.variance, residual, spec.trunk, weight)
        residual -= z @ inner.T.float() @ outer.float()
        trunk_in = principal.rows(inner)
        state["fff_trunk_in"].copy_(trunk_in)
        state["fff_trunk_out"].copy_(outer)
        state["fff_bias"].copy_(mean - trunk_in @ principal.mean @ outer)
    leaves = None
    if neurons is not None and spec.leaf_width:
        leaves = LeafFit(neurons, spec.leaf_width, x, weight, principal, spec.leaf_sparsity)
    at = torch.arange(len(x))
    for t, tree in enumerate(grow_trees(z, principal.variance, residual, weight, spec)):
        rows = principal.rows(tree.rows)
        state["fff_in_weight"][t] = rows
        state["fff_in_bias"][t] = tree.bias - rows @ principal.mean
        state["fff_out_weight"][t] = tree.out
        if spec.branch_outputs:
            state["fff_leaf_constant"][t] = tree.constant
        if leaves is None:
            continue
        whole = t == 0 and not spec.trunk
        at = at[tree.order]
        if whole and leaves.entire:
            # Leaves that are the block leave the nodes nothing to add.
            state["fff_out_weight"][t] = state["fff_leaf_constant"][t] = 0
            residual.copy_(y[at] - mean)
        for filled, tokens in tqdm(tree.ends, desc="leaves", leave=False, disable=None):
            some = tokens if tokens.start < tokens.stop else slice(None)  # no token came: as for all
            leaf = leaves.fit(x[at[some]], z[some], residual[some], weight[some], whole=whole)
            _put(state, t, filled, leaf)
            residual[tokens] -= leaf(x[at[tokens]])
    return layer


def _put(state: dict[str, Tensor], tree: int, leaves: slice, leaf: Leaf) -> None:
    """Write a leaf block into the parameters of a layer."""
    for name, rows, bias in zip(("in", "gate"), leaf.neurons.rows, leaf.neurons.bias, strict=False):
        state[f"fff_leaf_{name}_weight"][tree, leaves] = rows
        state[f"fff_leaf_{name}_bias"][tree, leaves] = bias
    state["fff_leaf_out_weight"][tree, leaves] = leaf.neurons.out
    state["fff_leaf_constant"][tree, leaves] += leaf.constant
    if leaf.neurons.threshold is not None:
        state["fff_leaf_threshold"][tree, leaves] = leaf.neurons.threshold


def r2(y: Tensor, y_hat: Tensor, weight: Tensor | None = None) -> float:
    """The share of the variance of y that y_hat explains; below 0 where the mean of y would do better.

    Args:
        y: [tokens, d_out]
        y_hat: [tokens, d_out]
        weight: [tokens], of mean 1; all 1 by default.

    Returns:
        1 - |y - y_hat|² / |y - mean|². Where y does not vary: 1 if y_hat equals it, else 0.
    """
    weight = torch.ones(len(y), dtype=torch.float32) if weight is None else weight
    error = weight.double() @ (y - y_hat).double().square().sum(1)
    total = weight.double() @ centre(y, weight)[1].double().square().sum(1)
    return float(error == 0) if total == 0 else 1 - float(error / total)


def _check(x: Tensor, y: Tensor, spec: FFFSpec, neurons: Neurons | None) -> None:
    usable = neurons is not None and neurons.gated is spec.leaf_gated and spec.branch_outputs
    if spec.leaf_width and not usable:
        raise FFFError(
            f"leaf_width is {spec.leaf_width}; expected branch outputs, and neurons gated like the leaves"
        )
    if x.shape != (len(x), spec.d_in) or y.shape != (len(x), spec.d_out) or not len(x):
        raise FFFError(
            f"found activations {list(x.shape)} and {list(y.shape)}; "
            f"expected [tokens, {spec.d_in}] and [tokens, {spec.d_out}] with at least one token"
        )
    if not (x.isfinite().all() and y.isfinite().all()):
        raise FFFError("the activations hold NaN or infinite values; check the model's weights and dtype")
