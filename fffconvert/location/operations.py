"""What the matcher knows of single recorded operations: which are linear maps, which only move values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fffconvert.location.capturing import ADDMMS, ATTENTIONS, CHUNKS, CONVOLUTIONS, DROPOUTS, LINEARS, MATMULS
from fffconvert.private_names import OpOverload, schema_of

aten = torch.ops.aten

COPIES = {aten._to_copy.default, aten.clone.default, aten.alias.default, aten.detach.default}
COPIES |= {aten.lift_fresh.default, aten.contiguous.default}
REDUCTIONS = {aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.var.correction}
NORMS = {aten.native_layer_norm.default, aten.native_group_norm.default, aten.native_batch_norm.default}
NORMS |= {aten._native_batch_norm_legit.default, aten._native_batch_norm_legit_no_training.default}
LINEAR_POINTWISE = {"add", "add_", "sub", "sub_", "rsub", "neg", "neg_", "mul", "mul_", "div", "div_"}
GROUPED = {"_grouped_mm", "_scaled_grouped_mm"}
POINTWISE = {"hardswish", "hardswish_", "log_sigmoid_forward", "prelu", "_prelu_kernel", "celu", "selu"}
"""Pointwise operations that lack torch's own tag."""


@dataclass(frozen=True)
class Contraction:
    """A linear map of data by weights.

    Attributes:
        node: The operation.
        source: What is mapped.
        weight: The weights.
        bias: The bias added in the same operation.
        axis: Axis of the features in `source` and in the result.
        transposed: The weights are [in, out] instead of [out, in].
        unsupported: Why a block made of it cannot be taken.
        added_bias: The addition of the bias, where it is an operation of its own.
    """

    node: fx.Node
    source: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    axis: int
    transposed: bool = False
    unsupported: str | None = None
    added_bias: fx.Node | None = None

    @property
    def result(self) -> fx.Node:
        """The node after which the map is complete."""
        return self.added_bias or self.node

    @property
    def bias_vector(self) -> Tensor | None:
        """The bias as [out], if there is one."""
        return None if self.bias is None else value(self.bias).detach().reshape(-1)

    @property
    def d_in(self) -> int:
        """Features of the source."""
        return int(value(self.source).shape[self.axis])

    @property
    def d_out(self) -> int:
        """Features of the result."""
        return int(value(self.node).shape[self.axis])

    def matrix(self) -> Tensor:
        """The weights as [out, in]."""
        weight = value(self.weight).detach()
        return weight.T if self.transposed else weight.reshape(weight.shape[0], -1)


def value(node: fx.Node) -> Tensor:
    """The tensor that a node had in the recorded run."""
    tensor: Tensor = node.meta["value"]
    return tensor


def name_of(node: fx.Node) -> str:
    """The operation's name without namespace and overload."""
    target = node.target
    if isinstance(target, OpOverload):
        return str(schema_of(target).name).split("::")[-1]
    return getattr(target, "__name__", str(target))


def is_pointwise(node: fx.Node) -> bool:
    """Whether each element of the result depends on the same element of the arguments only."""
    target = node.target
    if not isinstance(target, OpOverload):
        return False
    return torch.Tag.pointwise in target.tags or name_of(node) in POINTWISE


def is_linear_pointwise(node: fx.Node) -> bool:
    """Whether the result is linear in the data: sums of data, products with constants."""
    name = name_of(node)
    if name not in LINEAR_POINTWISE:
        return False
    data = [source for source in node.all_input_nodes if not source.meta["const"]]
    if name.startswith("mul"):
        return len(data) < 2 and node.args[0] is not node.args[1]
    if name.startswith("div"):
        divisor = argument(node, 1, "other")
        return not isinstance(divisor, fx.Node) or divisor.meta["const"]
    return True


def is_rearrangement(node: fx.Node) -> bool:
    """Whether the result holds values of one argument, unchanged but moved or selected."""
    if (
        node.target in COPIES
        or node.target in CHUNKS
        or name_of(node) in {"_unsafe_view", "getitem", "_reshape_copy"}
    ):
        return True
    return isinstance(node.target, OpOverload) and (
        node.target.is_view or name_of(node) in {"split", "split_with_sizes", "unsafe_split", "unsafe_chunk"}
    )


def canonical(node: fx.Node) -> fx.Node:
    """The node that first held all the values of this one: copies, casts and changes of shape are undone."""
    while node.op == "call_function" and is_rearrangement(node) and name_of(node) != "getitem":
        source = node.all_input_nodes[0]
        if source.meta["value"] is None or node.meta["value"] is None:
            break
        if value(source).numel() != value(node).numel():
            break
        node = source
    return node


def is_dropout(node: fx.Node) -> bool:
    """Whether the node is a dropout of any kind."""
    return node.target in DROPOUTS


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument given by position or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def contraction(node: fx.Node) -> Contraction | None:
    """The node as a linear map of data by constant weights, if it is one."""
    if node.op != "call_function":
        return None
    target = node.target
    if target in LINEARS:
        weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
        found = _product(node, argument(node, 0, "input"), weight, bias, False)
    elif target in ADDMMS:
        if node.kwargs.keys() & {"beta", "alpha"}:
            return None
        weight, bias = argument(node, 2, "mat2"), argument(node, 0, "input")
        found = _product(node, argument(node, 1, "mat1"), weight, bias, True)
    elif target in MATMULS:
        weight = argument(node, 1, "other", node.kwargs.get("mat2"))
        found = _product(node, argument(node, 0, "input"), weight, None, True)
    elif target in CONVOLUTIONS:
        found = _convolution(node)
    elif target is torch.einsum:
        found = _einsum(node)
    elif name_of(node) in GROUPED or name_of(node) == "baddbmm":
        first = 1 if name_of(node) == "baddbmm" else 0
        found = _product(node, node.args[first], node.args[first + 1], None, True)
    else:
        return None
    return _with_bias(found) if found is not None else None


def _with_bias(linear: Contraction) -> Contraction:
    """Take in a bias that the same module call adds after the product."""
    users = list(linear.node.users)
    if linear.bias is not None or len(users) != 1 or name_of(users[0]) not in {"add", "add_"}:
        return linear
    addition = users[0]
    constants = [source for source in addition.all_input_nodes if source.meta["const"]]
    if len(constants) != 1 or addition.kwargs or addition.meta["stack"] != linear.node.meta["stack"]:
        return linear
    vector = value(constants[0])
    from_end = value(linear.node).ndim - linear.axis
    if vector.numel() != linear.d_out or vector.ndim < from_end or vector.shape[-from_end] != linear.d_out:
        return linear
    return replace(linear, bias=constants[0], added_bias=addition)


def _product(node: fx.Node, source: Any, weight: Any, bias: Any, transposed: bool) -> Contraction | None:
    if not isinstance(source, fx.Node) or not isinstance(weight, fx.Node):
        return None
    axis = value(node).ndim - 1
    if source.meta["const"] and not weight.meta["const"] and value(source).ndim == 2 and transposed:
        source, weight, transposed, axis = (
            weight,
            source,
            False,
            value(node).ndim - 2,
        )  # W @ x, features first
    if source.meta["const"] or not weight.meta["const"] or value(node).ndim == 0:
        return None
    if value(weight).ndim < 2:
        return None
    if value(weight).ndim > 2:
        reason = (
            f"its weights are a stack of {value(weight).shape[0]} matrices: grouped, or a mixture of experts"
        )
        return Contraction(node, source, weight, None, axis, transposed, reason)
    return Contraction(node, source, weight, bias, axis, transposed)


def _convolution(node: fx.Node) -> Contraction | None:
    source, weight = argument(node, 0, "input"), argument(node, 1, "weight")
    if not isinstance(source, fx.Node) or source.meta["const"] or not weight.meta["const"]:
        return None
    kernel = value(weight).shape[2:]
    if math.prod(kernel) != 1 or value(node).shape[2:] != value(source).shape[2:]:
        return None
    channels = value(source).shape[1]
    groups = channels // value(weight).shape[1]
    if groups == channels > 1:
        return None  # depthwise: a scale
    unsupported = f"grouped convolution ({groups} groups): no dense product" if groups > 1 else None
    return Contraction(node, source, weight, argument(node, 2, "bias"), 1, False, unsupported)


def _einsum(node: fx.Node) -> Contraction | None:
    equation, operands = argument(node, 0, "equation"), node.all_input_nodes
    if not isinstance(equation, str) or "->" not in equation or len(operands) != 2:
        return None
    terms, result = equation.replace(" ", "").split("->")
    names = terms.split(",")
    if len(names) != 2:
        return None
    (source, x), (weight, w) = sorted(
        zip(operands, names, strict=True), key=lambda pair: pair[0].meta["const"]
    )
    if source.meta["const"] or not weight.meta["const"] or len(w) != 2:
        return None
    inner = [label for label in w if label in x and label not in result]
    outer = [label for label in w if label in result and label not in x]
    if len(inner) != 1 or len(outer) != 1 or x.replace(inner[0], outer[0]) != result:
        return None
    axis = value(source).ndim - len(x.split(inner[0])[1].replace("...", "")) - 1
    return Contraction(node, source, weight, None, axis, transposed=w[0] == inner[0])


def multiply_adds(node: fx.Node) -> int:
    """Multiply-adds of one recorded operation; 0 for anything but products of matrices, and attention."""
    if node.op != "call_function" or not isinstance(node.meta.get("value"), Tensor):
        return _attention(node) if "scaled_dot_product" in name_of(node) else 0
    target, name = node.target, name_of(node)
    result = value(node)
    if target in LINEARS or target in MATMULS or name in GROUPED:
        return result.numel() * int(value(node.all_input_nodes[0]).shape[-1])
    if target in ADDMMS or name == "baddbmm":
        return result.numel() * int(value(argument(node, 1, "mat1")).shape[-1])
    if target in CONVOLUTIONS:
        weight = value(argument(node, 1, "weight"))
        return result.numel() * weight[0].numel()
    if target is torch.einsum:
        return _einsum_macs(node)
    return _attention(node) if target in ATTENTIONS or "scaled_dot_product" in name else 0


def _attention(node: fx.Node) -> int:
    tensors = [value(n) for n in node.all_input_nodes[:3]]
    if node.op != "call_function" or len(tensors) < 2:
        return 0
    query, key, v = tensors[0], tensors[1], tensors[-1]
    return query.numel() * int(key.shape[-2]) + query[..., 0].numel() * int(key.shape[-2]) * int(v.shape[-1])


def _einsum_macs(node: fx.Node) -> int:
    equation = node.args[0]
    operands = [value(n) for n in node.all_input_nodes]
    if not isinstance(equation, str):
        return 0
    names = equation.replace(" ", "").replace("...", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    batch = 1
    for labels, tensor in zip(names, operands, strict=False):
        extra = tensor.ndim - len(labels)
        batch = max(batch, math.prod(tensor.shape[:extra]))
        sizes.update(zip(labels, tensor.shape[extra:], strict=True))
    return batch * math.prod(sizes.values())
