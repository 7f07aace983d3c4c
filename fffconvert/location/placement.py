"""Where a block sits among the modules of its model."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn

from fffconvert.location.capturing import CHUNKS, Call, Capture
from fffconvert.location.hidden import Refused
from fffconvert.location.operations import (
    Contraction,
    canonical,
    is_dropout,
    is_pointwise,
    is_rearrangement,
    value,
)
from fffconvert.location.sites import Placement, Position


class Placer:
    """Finds the placement of blocks in one recorded run."""

    def __init__(self, model: nn.Module, capture: Capture) -> None:
        self._capture = capture
        self._paths: dict[int, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self._paths.setdefault(id(module), []).append(path)

    def place(self, ups: list[Contraction], region: set[fx.Node], down: Contraction) -> Placement:
        """The placement of a block.

        Args:
            ups: The up-projections, in the order in which they ran.
            region: The nodes between the projections, without them.
            down: The down-projection.

        Raises:
            Refused: The block is not made of modules that could be replaced.
        """
        whole = self._whole(ups, region, down)
        if whole is not None:
            return whole
        entries = [self._projection(up) for up in ups]
        last = self._projection(down)
        between = self._activations(ups, region, down, entries, last)
        axis = _kept_axis(ups[0].source, entries[0].inputs[0], ups[0].axis)
        if axis is None or _kept_axis(last.outputs[0], down.result, axis) != down.axis:
            raise Refused("a projection's module exchanges axes")
        axis = _feature_axis(axis, entries[0].inputs[0])
        first, exits = self._all_paths(entries[0]), self._all_paths(last)
        if between is not None:
            passed = tuple(path for call in between for path in self._all_paths(call))
            return Placement(Position.SPLIT, first, passed, exits, feature_axis=axis)
        passed = tuple(path for call in entries[1:] for path in self._all_paths(call))
        width = 0 if all(_works_hollow(node) for node in region) else ups[0].d_out
        return Placement(Position.HANDOVER, first, passed, exits, width, axis)

    def path(self, node: fx.Node) -> str:
        """Path of the innermost module call that a node happened in."""
        return next((call.path for call in self._calls_around(node)), "")

    def most_calls(self, placement: Placement) -> int:
        """How often the most called of a block's modules was called."""
        calls = Counter(id(call.module) for call in self._capture.calls)
        paths = {path for path in (*placement.entry, *placement.passed, *placement.exit)}
        return max(calls[module] for module, names in self._paths.items() if paths & set(names))

    def _all_paths(self, call: Call) -> tuple[str, ...]:
        return tuple(self._paths[id(call.module)])

    def _calls_around(self, node: fx.Node) -> list[Call]:
        return [self._capture.calls[index] for index in reversed(node.meta["stack"])]

    def _whole(self, ups: list[Contraction], region: set[fx.Node], down: Contraction) -> Placement | None:
        """The innermost call that is exactly the block: one tensor in, one out, these parameters."""
        block = [*(up.node for up in ups), *(up.result for up in ups), *region, down.node, down.result]
        own = set().union(*(_parameters(node) for node in block))
        for call in self._calls_around(down.node):
            if not all(self._inside(call, node) for node in block):
                continue
            if {id(p) for p in call.module.parameters()} != own or not call.positional or not call.tensor_out:
                return None
            if len(call.inputs) != 1 or len(call.outputs) != 1 or call.path == "":
                return None
            axis = _kept_axis(ups[0].source, call.inputs[0], ups[0].axis)
            if axis is None or _kept_axis(call.outputs[0], down.result, axis) != down.axis:
                return None
            axis = _feature_axis(axis, call.inputs[0])
            return Placement(Position.MODULE, self._all_paths(call), feature_axis=axis)
        return None

    def _inside(self, call: Call, node: fx.Node) -> bool:
        return any(self._capture.calls[index] is call for index in node.meta["stack"])

    def _projection(self, linear: Contraction) -> Call:
        """The module call that is one projection and nothing else."""
        own = _parameters(linear.node) | _parameters(linear.result)
        reason = "its parameters are used directly in the forward of {path}, not by a module of their own"
        for call in self._calls_around(linear.node):
            if {id(p) for p in call.module.parameters()} == own and call.path:
                reason = "module {path} does more than its projection"
                reads = len(call.inputs) == 1 and canonical(call.inputs[0]) is canonical(linear.source)
                gives = call.tensor_out and canonical(call.outputs[0]) is canonical(linear.result)
                if reads and gives and call.positional:
                    return call
        raise Refused(reason.format(path=self.path(linear.node) or "the model"))

    def _activations(
        self,
        ups: list[Contraction],
        region: set[fx.Node],
        down: Contraction,
        entries: list[Call],
        last: Call,
    ) -> list[Call] | None:
        """The chain of activation modules between two projections, or None if anything else lies there."""
        if len(ups) > 1 or any(is_dropout(node) for node in region):
            return None
        chain: list[Call] = []
        here = entries[0].outputs[0]
        while here is not last.inputs[0]:
            following = [call for call in self._capture.calls if call.inputs == [here] and call is not last]
            following = [call for call in following if call.positional and call.tensor_out]
            if len(following) != 1 or any(True for _ in following[0].module.parameters()):
                return None
            if following[0].outputs[0] is here or self._count(following[0]) != self._count(entries[0]):
                return None
            chain.append(following[0])
            here = following[0].outputs[0]
        inner = {
            node for node in region if any(self._inside(call, node) for call in [*chain, *entries, last])
        }
        return chain if chain and inner == region else None

    def _count(self, call: Call) -> int:
        return sum(other.module is call.module for other in self._capture.calls)


def _parameters(node: fx.Node) -> set[int]:
    """Identities of the parameters that an operation reads, also through other constants."""
    found: set[int] = set()
    pending = [source for source in node.all_input_nodes if source.meta["const"]]
    while pending:
        source = pending.pop()
        if source.op == "get_attr" and isinstance(value(source), nn.Parameter):
            found.add(id(value(source)))
        pending += source.all_input_nodes
    return found


def _kept_axis(node: fx.Node, origin: fx.Node, axis: int) -> int | None:
    """The axis in `origin` of what is `axis` in `node`, if only token axes were merged or split between."""
    while node is not origin:
        if not is_rearrangement(node) or len(node.all_input_nodes) != 1:
            return None
        source = node.all_input_nodes[0]
        if source.meta["value"] is None or node.meta["value"] is None:  # one of several results
            return None
        before, after = value(source).shape, value(node).shape
        if before != after:
            if (
                axis != len(after) - 1
                or before[-1] != after[-1]
                or value(source).numel() != value(node).numel()
            ):
                return None
            axis = len(before) - 1
        node = source
    return axis


def _feature_axis(axis: int, node: fx.Node) -> int:
    if axis == value(node).ndim - 1:
        return -1
    if axis == 1:
        return 1
    raise Refused(f"its features lie on axis {axis} of {value(node).ndim}; expected the last one or axis 1")


def _works_hollow(node: fx.Node) -> bool:
    """Whether an operation between the projections also takes tensors of width 0."""
    if is_dropout(node) or node.target in CHUNKS:
        return True
    if is_pointwise(node):
        return all(value(c).numel() == 1 for c in node.all_input_nodes if c.meta["const"])
    if not is_rearrangement(node) or node.meta["value"] is None:
        return False
    source = node.all_input_nodes[0]
    if source.meta["value"] is None:
        return source.target in CHUNKS
    return value(node).shape == value(source).shape
