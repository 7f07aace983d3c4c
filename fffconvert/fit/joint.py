"""Output rows and constants of a whole tree, refitted together once its routing is fixed.

Growth fits a node before those beneath it are known. All rows together are one sparse least-squares problem:
a token's row of the design holds the activations along its path and a one for the path's end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from fffconvert.runtime.activations import ACTIVATIONS

if TYPE_CHECKING:
    from fffconvert.planning import FFFSpec

PRIOR_TOKENS = (10.0, 30.0, 100.0, 300.0)
"""Ridges to choose from, towards what growth found, in tokens of each row's own mean energy."""
HELD_OUT = 16
"""Every so many tokens one helps to choose the ridge."""
LEAST_ENERGY = 0.01
"""Energy per token that the ridge assumes at least, relative to the median row's."""
CHUNK = 8192
TINY = 1e-30


def refit_outputs(
    z: Tensor, residual: Tensor, weight: Tensor, rows: Tensor, bias: Tensor, spec: FFFSpec
) -> tuple[Tensor, Tensor]:
    """Find what to add to a grown tree's outputs, and subtract from the residual what that explains.

    Nothing, if no ridge helps tokens that were left out when the change was found.

    Args:
        z: [tokens, features], the tree's inputs.
        residual: [tokens, d_out], what the grown tree left. Changed in place.
        weight: [tokens], of mean 1.
        rows: [N, features], input rows.
        bias: [N]
        spec: Shape of the layer.

    Returns:
        Changes of the output rows, [B * N, d_out], and of the constants, [leaves, d_out]; the latter are zero
        without branch outputs.

    Reference: arXiv 2311.10770, section 3, for the layer; ridge regression towards a given point for the fit.
    """
    design = _design(z, rows, bias.to(z), spec)
    held = np.zeros(len(z), bool)
    held[HELD_OUT // 2 :: HELD_OUT] = True
    own, rest = (
        _Normal.of(design[side], residual[torch.from_numpy(side)], weight[side]) for side in (~held, held)
    )
    ridges = own.ridge()
    best, prior = 0.0, None
    for candidate in PRIOR_TOKENS:
        gain = rest.gain(_solve(own.gram + candidate * ridges, own.towards, spec))
        if gain > best:
            best, prior = gain, candidate
    if prior is None:
        change = torch.zeros(design.shape[1], residual.shape[1], dtype=torch.float32)
    else:
        gram = own.gram + rest.gram + prior * ridges
        change = torch.from_numpy(_solve(gram, own.towards + rest.towards, spec)).float()
    for start in range(0, len(z), CHUNK):
        part = design[start : start + CHUNK].astype(np.float32)
        residual[start : start + CHUNK] -= torch.from_numpy(part @ change.numpy())
    outputs = _output_rows(spec)
    constants = change[outputs:] if spec.branch_outputs else change.new_zeros(spec.leaves, change.shape[1])
    return change[:outputs], constants


def _design(z: Tensor, rows: Tensor, bias: Tensor, spec: FFFSpec) -> sparse.csr_matrix:
    """Activations along the path of each token, and a one at its end where ends have constants."""
    fn = ACTIVATIONS[spec.activation].fn
    columns, values = [], []
    for part in torch.split(z, CHUNK):
        node = torch.zeros(len(part), dtype=torch.long)
        own_columns, own_values = [], []
        for _ in range(spec.depth + 1):
            s = torch.einsum("tf,tf->t", part, rows[node]) + bias[node]
            right = (s > 0).long()
            own_columns.append(2 * node + right if spec.branch_outputs else node)
            own_values.append(fn(s))
            node = 2 * node + 1 + right
        if spec.branch_outputs:
            own_columns.append(_output_rows(spec) + node - spec.nodes)
            own_values.append(torch.ones(len(part), dtype=torch.float32))
        columns.append(torch.stack(own_columns, 1))
        values.append(torch.stack(own_values, 1))
    indices, data = torch.cat(columns), torch.cat(values).double()
    starts = np.arange(0, indices.numel() + 1, indices.shape[1])
    width = _output_rows(spec) + (spec.leaves if spec.branch_outputs else 0)
    return sparse.csr_matrix(
        (data.flatten().numpy(), indices.flatten().numpy(), starts), shape=(len(z), width)
    )


def _output_rows(spec: FFFSpec) -> int:
    return spec.nodes * (2 if spec.branch_outputs else 1)


@dataclass(frozen=True)
class _Normal:
    """Normal equations of some tokens, in float64.

    Attributes:
        gram: [columns, columns], sparse.
        towards: [columns, d_out], the design's transpose times the residual.
        visits: [columns], tokens that meet each column.
    """

    gram: sparse.csc_matrix
    towards: np.ndarray
    visits: np.ndarray

    @classmethod
    def of(cls, design: sparse.csr_matrix, residual: Tensor, weight: Tensor) -> _Normal:
        weighted = design.multiply(weight.double().numpy()[:, None]).tocsr()
        towards = np.zeros((design.shape[1], residual.shape[1]))
        for start in range(0, len(residual), CHUNK):
            part = slice(start, start + CHUNK)
            towards += weighted[part].T @ residual[part].double().numpy()
        return cls((weighted.T @ design).tocsc(), towards, np.asarray((design != 0).sum(0)).ravel())

    def ridge(self) -> sparse.dia_matrix:
        """The ridge that counts as much as one token: each column's mean energy, on the diagonal."""
        energy = self.gram.diagonal()
        mean = energy / np.maximum(self.visits, 1)
        seen = mean[energy > 0]
        least = LEAST_ENERGY * float(np.median(seen)) if len(seen) else 1.0
        return sparse.diags(np.maximum(mean, max(least, TINY)))

    def gain(self, change: np.ndarray) -> float:
        """By how much a change of the outputs lowers the squared error of these tokens."""
        return float(np.sum(change * (2 * self.towards - self.gram @ change)))


def _solve(gram: sparse.csc_matrix, towards: np.ndarray, spec: FFFSpec) -> np.ndarray:
    """Solve the normal equations. Only rows on one path meet, so eliminating upwards fills nothing in."""
    nodes = np.arange(_output_rows(spec))[::-1]
    order = np.concatenate([np.arange(_output_rows(spec), len(towards)), nodes])
    factors = splu(
        gram[order][:, order].tocsc(),
        permc_spec="NATURAL",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    solution = np.empty_like(towards)
    solution[order] = factors.solve(np.ascontiguousarray(towards[order]))
    return solution
