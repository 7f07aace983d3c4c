"""A rival of trees: the block's neurons clustered into experts behind a router that is not learned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from fffconvert.fit.moments import centre, second_moment, token_weights
from fffconvert.fit.neurons import Neurons

EXPERT = 16
"""Neurons of an expert."""
SHARED_SHARE = 3 / 7
"""Share of the active width that is on for every token."""
ROUNDS = 5
SAMPLE = 16_384
CHUNK = 8192
RIDGE = 1e-4


class Experts(nn.Module):
    """Shared neurons, and for each token the experts whose representative neurons are most active.

    Args:
        neurons: Those of the block.
        size: [neurons], length of each neuron's original output row.
        shared: Indices of the neurons that are always on.
        members: [experts, EXPERT], indices of each expert's neurons; the first is its representative.
        active: Experts of a token.
    """

    def __init__(self, neurons: Neurons, size: Tensor, shared: Tensor, members: Tensor, active: int) -> None:
        super().__init__()
        self.neurons, self.size, self.shared, self.members = neurons, size, shared, members
        self.active = active
        self.out = nn.Parameter(torch.zeros(len(neurons), 0, dtype=torch.float32))
        self.constant = nn.Parameter(torch.zeros(0, dtype=torch.float32))

    def hidden(self, x: Tensor) -> Tensor:
        """The neurons' values, zero where they are off: [tokens, d_in] to [tokens, neurons]."""
        values = self.neurons(x)
        representative = self.members[:, 0]
        scores = values[:, representative].abs() * self.size[representative]
        chosen = self.members[scores.topk(self.active, dim=1).indices].flatten(1)
        on = torch.zeros_like(values).scatter_(1, chosen, 1.0)
        on[:, self.shared] = 1
        return values * on

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block: [tokens, d_in] to [tokens, d_out]."""
        return torch.addmm(self.constant, self.hidden(x), self.out)


@torch.no_grad()
def fit_experts(x: Tensor, y: Tensor, neurons: Neurons, width: int) -> Experts:
    """Cluster a block's neurons into experts of equal size, and refit all output rows by ridge.

    The published methods keep the original output rows; refitted ones are better, and fair to compare with.
    The router's own multiply-adds are not counted against it.

    Args:
        x: [tokens, d_in]
        y: [tokens, d_out]
        neurons: Those of the block.
        width: Neurons that are on for a token.

    Returns:
        The experts.

    Reference: MoEfication (arXiv 2110.01786), section 3.2; CMoE (arXiv 2502.04416), section 3.
    """
    size = torch.linalg.vector_norm(neurons.out, dim=1)
    sample = neurons(x[:: -(-len(x) // SAMPLE)]).abs() * size
    active = round(width * (1 - SHARED_SHARE) / EXPERT)
    shared_count = width - active * EXPERT
    # What does not fill experts of equal size is shared, as is what is on for most tokens.
    rest = (len(neurons) - shared_count) % EXPERT
    ranked = sample.mean(0).argsort(descending=True)
    shared, routed = ranked[: shared_count + rest], ranked[shared_count + rest :]
    experts = Experts(neurons, size, shared, _balanced_clusters(sample, routed, width), active)
    weight = token_weights(y)
    mean_y, centred_y = centre(y, weight)
    hidden = torch.cat([experts.hidden(part) for part in torch.split(x, CHUNK)])
    mean, hidden = centre(hidden, weight)
    gram = second_moment(hidden, hidden, weight)
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    rows = torch.linalg.solve(gram, second_moment(hidden, centred_y, weight))
    experts.out = nn.Parameter(rows.float())
    experts.constant = nn.Parameter((mean_y - mean @ rows).float())
    return experts


def _balanced_clusters(sample: Tensor, routed: Tensor, width: int) -> Tensor:
    """Balanced k-means on which tokens each neuron is among the most active for: [experts, EXPERT]."""
    top = torch.zeros_like(sample).scatter_(1, sample.topk(width, dim=1).indices, 1.0)
    features = F.normalize(top[:, routed].T, dim=1)
    count = len(routed) // EXPERT
    centroids = features[::EXPERT][:count].clone()
    for _ in range(ROUNDS):
        similarity = features @ centroids.T
        _, slots = linear_sum_assignment(-similarity.repeat_interleave(EXPERT, 1).numpy())
        cluster = torch.from_numpy(slots) // EXPERT
        sums = torch.zeros_like(centroids).index_add_(0, cluster, features)
        centroids = F.normalize(sums, dim=1)
    members = []
    for expert in range(count):
        own = (cluster == expert).nonzero()[:, 0]
        nearest = (features[own] @ centroids[expert]).argsort(descending=True)
        members.append(routed[own[nearest]])
    return torch.stack(members)
