"""What single operations of a recorded run multiply, and how many rows."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, fx, nn

from fffconvert.location.capturing import ADDMMS, ATTENTIONS, CONVOLUTIONS
from fffconvert.location.operations import contraction, is_rearrangement, name_of
from fffconvert.private_names import OpOverload


def is_attention(node: fx.Node) -> bool:
    """Whether an operation is attention as a whole: softmax of products, times values."""
    return node.target in ATTENTIONS or "scaled_dot_product" in name_of(node)


def result_of(node: fx.Node) -> Tensor | None:
    """The tensor that an operation gave; of several the first, if anything took it."""
    if isinstance(node.meta["value"], Tensor):
        return node.meta["value"]
    first = (user.meta["value"] for user in node.users if user.args[1:] == (0,))
    return next((value for value in first if isinstance(value, Tensor)), None)


def row_count(node: fx.Node) -> int:
    """Rows of a linear map or convolution."""
    result: Tensor = node.meta["value"]
    linear = contraction(node)
    if linear is not None:
        return result.numel() // linear.d_out
    return result.numel() // (result.shape[1] if node.target in CONVOLUTIONS else result.shape[-1])


def factors(node: fx.Node) -> list[fx.Node]:
    """What a product multiplies: not what is added to it, such as biases and masks."""
    added = node.args[0] if node.target in ADDMMS or name_of(node) == "baddbmm" else None
    sources = [source for source in node.all_input_nodes if source is not added]
    sources = sources[: 3 if is_attention(node) else 2]
    return sources if len(sources) > 1 else 2 * sources


def weights_of(node: fx.Node) -> list[fx.Node]:
    """Parameters of two or more axes that a product multiplies data with."""
    sources = [source for source in factors(node) if source.meta["const"]]
    if len(sources) == len(factors(node)) or is_attention(node):
        return []
    return [s for s in sources if s.meta["value"].ndim > 1 and parameter_names([s])]


def is_picked_weight(node: fx.Node) -> bool:
    """Whether a factor is a matrix for each token, picked from a parameter by a router."""
    while is_rearrangement(node) and not node.meta["const"]:
        node = node.all_input_nodes[0]
    if name_of(node) not in {"index", "index_select"} or node.meta["const"]:
        return False
    table = node.all_input_nodes[0]
    return bool(table.meta["const"] and table.meta["value"].ndim > 2 and parameter_names([table]))


def parameter_names(nodes: Iterable[fx.Node]) -> list[str]:
    """Names of the parameters that constants are made of."""
    names: list[str] = []
    pending = [node for node in nodes if node.meta["const"]]
    while pending:
        node = pending.pop(0)
        if node.op == "get_attr" and isinstance(node.meta["value"], nn.Parameter):
            names.append(str(node.target))
        pending += node.all_input_nodes
    return names


def is_view(node: fx.Node) -> bool:
    """Whether an operation moves no memory."""
    if not is_rearrangement(node):
        return False
    return not isinstance(node.target, OpOverload) or bool(node.target.is_view)
