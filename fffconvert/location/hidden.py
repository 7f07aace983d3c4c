"""What lies between the projections of a block, cut out as a graph over [..., features].

Recorded shapes are baked into the recorded operations, so the graph is rebuilt: features last, any number of
tokens. Rearrangements (views, transposes, splits, slices) are followed by running them on numbered elements
and reading off which features they select; dropout is left out.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fffconvert.location.operations import (
    COPIES,
    NORMS,
    REDUCTIONS,
    Contraction,
    is_dropout,
    is_pointwise,
    is_rearrangement,
    name_of,
    value,
)


class Refused(Exception):
    """The block cannot be taken; the message says why."""


@dataclass
class _Value:
    """What a recorded node is in the new graph.

    Attributes:
        node: Its node, [..., width]; of the last computed value while a rearrangement is pending.
        width: Features of `node`.
        axis: Axis of the features in the recorded tensor.
        numbers: The pending rearrangement: the recorded tensor's elements as numbers token * width + feature.
    """

    node: fx.Node
    width: int
    axis: int
    numbers: Tensor | None = None


def hidden_graph(ups: list[Contraction], down: Contraction) -> fx.GraphModule:
    """The map from the up-projections' results to the down-projection's input.

    Args:
        ups: The up-projections, in the order of the graph's arguments.
        down: The down-projection.

    Returns:
        A module that takes one tensor [..., width] per up-projection and returns [..., d_hidden].

    Raises:
        Refused: Something in between mixes tokens or depends on positions.
    """
    builder = _Builder(ups)
    result = builder.settled(down.source)
    if result.axis != down.axis:
        raise Refused("the hidden layer's axes are exchanged between the projections")
    builder.graph.output(result.node)
    return fx.GraphModule(builder.constants, builder.graph, "Hidden")


class _Builder:
    def __init__(self, ups: list[Contraction]) -> None:
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self._values: dict[fx.Node, _Value] = {}
        for index, up in enumerate(ups):
            self._values[up.result] = _Value(self.graph.placeholder(f"up{index}"), up.d_out, up.axis)

    def settled(self, node: fx.Node) -> _Value:
        """The node's value with no rearrangement pending."""
        current = self._value(node)
        if current.numbers is None:
            return current
        features, axis = _selected(current.numbers, current.width)
        selected = current.node
        if features.numel() != current.width or not torch.equal(features, torch.arange(current.width)):
            index: Any = (Ellipsis, _as_slice(features))
            selected = self.graph.call_function(operator.getitem, (selected, index))
        self._values[node] = _Value(selected, features.numel(), axis)
        return self._values[node]

    def _value(self, node: fx.Node) -> _Value:
        if node not in self._values:
            self._values[node] = self._build(node)
        return self._values[node]

    def _build(self, node: fx.Node) -> _Value:
        if node.target in COPIES or is_dropout(node):
            return self._value(node.all_input_nodes[0])
        if node.target is operator.getitem and node.all_input_nodes[0].target in NORMS:
            if node.args[1] != 0:
                raise Refused("the statistics of a norm are used between the projections")
            return self._norm(node.all_input_nodes[0])
        if is_rearrangement(node):
            return self._rearranged(node)
        if node.target in REDUCTIONS:
            return self._reduced(node)
        if node.target is torch.ops.aten.glu.default:
            source = self.settled(node.all_input_nodes[0])
            return _Value(
                self.graph.call_function(node.target, (source.node, -1)), source.width // 2, source.axis
            )
        if is_pointwise(node):
            return self._pointwise(node)
        raise Refused(f"{name_of(node)} lies between the projections")

    def _rearranged(self, node: fx.Node) -> _Value:
        if node.target is operator.getitem:
            parts, index = node.all_input_nodes[0], node.args[1]
        else:
            parts, index = node, None
        source = parts.all_input_nodes[0]
        current = self._value(source)
        numbers = current.numbers
        if numbers is None:
            count = value(source).numel()
            shape = value(source).movedim(current.axis, -1).shape
            numbers = torch.arange(count).reshape(shape).movedim(-1, current.axis)
        if index is None and node.meta["value"] is None:
            raise Refused("a list of tensors is used as one")
        arguments: Any = (parts.args, dict(parts.kwargs))
        args, kwargs = fx.node.map_arg(arguments, lambda n: numbers if n is source else n)
        function: Any = parts.target
        moved = function(*args, **kwargs)
        return _Value(current.node, current.width, current.axis, moved if index is None else moved[index])

    def _norm(self, node: fx.Node) -> _Value:
        source = self.settled(node.all_input_nodes[0])
        if node.target is not torch.ops.aten.native_layer_norm.default:
            raise Refused(f"{name_of(node)} between the projections does not run over the hidden layer")
        arguments: tuple[Any, ...] = node.args
        _, shape, weight, bias, eps = arguments
        if list(shape) != [source.width] or source.axis != value(node.all_input_nodes[0]).ndim - 1:
            raise Refused("a norm between the projections does not run over the hidden layer")
        ndim = source.axis + 1
        constants = [
            self._constant(c, source, ndim) if isinstance(c, fx.Node) else None for c in (weight, bias)
        ]
        norm = self.graph.call_function(node.target, (source.node, [source.width], *constants, eps))
        return _Value(self.graph.call_function(operator.getitem, (norm, 0)), source.width, source.axis)

    def _reduced(self, node: fx.Node) -> _Value:
        recorded = node.all_input_nodes[0]
        source = self.settled(recorded)
        ndim = value(recorded).ndim
        arguments: tuple[Any, ...] = node.args
        dims, *rest = arguments[1:]
        axes = [d % ndim for d in (dims if isinstance(dims, (list, tuple)) else [dims])]
        if axes != [source.axis] or value(node).ndim != ndim:
            raise Refused(f"{name_of(node)} between the projections does not run over the hidden layer")
        target: Any = node.target
        reduced = self.graph.call_function(target, (source.node, [-1], *rest), dict(node.kwargs))
        return _Value(reduced, 1, source.axis)

    def _pointwise(self, node: fx.Node) -> _Value:
        data = [self.settled(source) for source in node.all_input_nodes if not source.meta["const"]]
        widest = max(data, key=lambda current: current.width)
        tokens = value(node).numel() // widest.width
        for source in node.all_input_nodes:
            if not source.meta["const"]:
                operand = self.settled(source)
                if operand.axis != widest.axis or value(source).numel() // operand.width != tokens:
                    raise Refused(f"{name_of(node)} between the projections combines different tokens")

        def convert(source: fx.Node) -> fx.Node:
            return (
                self._constant(source, widest, value(node).ndim)
                if source.meta["const"]
                else self.settled(source).node
            )

        target: Any = node.target
        if name_of(node).endswith("_"):  # the in-place form would write into the projection's result
            target = getattr(torch.ops.aten, name_of(node)[:-1])
        args = fx.node.map_arg(node.args, convert)
        kwargs = fx.node.map_arg(dict(node.kwargs), convert)
        return _Value(self.graph.call_function(target, args, kwargs), widest.width, widest.axis)

    def _constant(self, node: fx.Node, like: _Value, ndim: int) -> fx.Node:
        """A constant that is combined with a tensor of `ndim` axes, as a vector over features or a number."""
        tensor = value(node).detach()
        axis = like.axis - (ndim - tensor.ndim)
        others = [size for i, size in enumerate(tensor.shape) if i != axis]
        if tensor.numel() == 1:
            tensor = tensor.reshape(())
        elif any(size != 1 for size in others):
            raise Refused("a constant between the projections differs from token to token")
        else:
            tensor = tensor.reshape(-1)
        name = f"constant{len(self.constants)}"
        self.constants[name] = tensor
        return self.graph.get_attr(name)


def _selected(numbers: Tensor, width: int) -> tuple[Tensor, int]:
    """Which features a rearrangement keeps, and on which axis they lie; tokens must stay in order."""
    for axis in reversed(range(numbers.ndim)):
        rows = numbers.movedim(axis, -1).reshape(-1, numbers.shape[axis])
        features = rows[0] % width
        tokens = torch.arange(rows.shape[0])[:, None]
        if torch.equal(rows, tokens * width + features):
            return features, axis
    raise Refused("tokens are moved between the projections")


def _as_slice(features: Tensor) -> slice | list[int]:
    start, stop = int(features[0]), int(features[-1])
    step = int(features[1]) - start if features.numel() > 1 else 1
    if step > 0 and torch.equal(features, torch.arange(start, stop + 1, step)):
        return slice(start, stop + 1, step)
    return [int(feature) for feature in features]
