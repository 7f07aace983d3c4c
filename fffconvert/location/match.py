"""Find the feedforward blocks in a recorded run by dataflow.

From each linear map, go backwards through pointwise operations, rearrangements, dropout and norms until
linear maps are reached. It is a block if all paths end in linear maps of the same tensor, a nonlinearity lies
between, input and output are of the same width, no hidden value is used elsewhere, and the result is added to
the residual stream that the block's input was taken from. The last rule leaves out poolers, heads, transforms
before a head, gates and routers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import fx, nn

from fffconvert.location.activation import name_activation
from fffconvert.location.capturing import CONVOLUTIONS, Capture
from fffconvert.location.hidden import Refused, hidden_graph
from fffconvert.location.operations import (
    NORMS,
    REDUCTIONS,
    Contraction,
    canonical,
    contraction,
    is_dropout,
    is_linear_pointwise,
    is_pointwise,
    is_rearrangement,
    multiply_adds,
    name_of,
    value,
)
from fffconvert.location.placement import Placer
from fffconvert.location.sites import BlockKind, FFNSite, Projection, Skipped

PICKS = {
    "index",
    "index_select",
    "gather",
    "index_put",
    "index_put_",
    "index_add",
    "index_add_",
    "index_copy_",
}
"""Operations that take tokens out of a tensor or put them into one."""
MANY = 64
"""No block has so many projections, adapters included: going back, one is already up the residual stream."""


@dataclass
class _Candidate:
    ups: list[Contraction]
    region: set[fx.Node]
    down: Contraction
    obstacles: list[str]

    @property
    def linears(self) -> list[Contraction]:
        return [*self.ups, self.down]


def find_blocks(
    model: nn.Module, capture: Capture, min_expansion: float
) -> tuple[list[FFNSite], list[Skipped]]:
    """All feedforward blocks of a recorded run, in the order in which they ran, and what was skipped.

    Args:
        model: The model that was recorded.
        capture: The recorded run.
        min_expansion: Least ratio of d_hidden to d_model; narrower blocks are adapters.
    """
    return _Matcher(model, capture, min_expansion).run()


class _Matcher:
    def __init__(self, model: nn.Module, capture: Capture, min_expansion: float) -> None:
        self._min_expansion = min_expansion
        self._linears = {n: c for n in capture.graph.nodes if (c := contraction(n)) is not None}
        self._results = {linear.result: linear for linear in self._linears.values()}
        self._live = _reaching(capture.outputs)
        self._placer = Placer(model, capture)
        self._total_macs = sum(multiply_adds(node) for node in capture.graph.nodes)

    def run(self) -> tuple[list[FFNSite], list[Skipped]]:
        sites: dict[tuple[str, ...], FFNSite] = {}
        skipped: dict[tuple[str, str], Skipped] = {}
        for down in self._linears.values():
            candidate = self._trace(down) if down.node in self._live else None
            if candidate is None:
                continue
            key = tuple(name for linear in candidate.linears for name in _parameter_names(linear))
            try:
                site = self._site(candidate)
            except Refused as refusal:
                path = re.sub(r"(\bexperts)\b.*", r"\1", self._placer.path(candidate.ups[0].node))
                skipped.setdefault((path, str(refusal)), Skipped(path, str(refusal)))
                continue
            if key in sites:
                first = sites[key]
                shared = first.shared_calls + 1
                sites[key] = replace(
                    first, shared_calls=shared, macs_share=first.macs_share + site.macs_share
                )
            else:
                sites[key] = site
        for key, site in list(sites.items()):
            if self._placer.most_calls(site.placement) != site.shared_calls:
                del sites[key]
                reason = "one of its projections is shared with something else"
                skipped.setdefault((site.name, reason), Skipped(site.name, reason))
        return list(sites.values()), list(skipped.values())

    def _trace(self, down: Contraction) -> _Candidate | None:
        """Go back from a linear map to those that feed it; None if it ends no feedforward block."""
        candidate = self._go_back(down)
        if candidate is None:
            return None
        ups, width = candidate.ups, down.d_in
        if len({canonical(up.source) for up in ups}) != 1 or ups[0].d_in != down.d_out:
            return None
        if not any(_is_nonlinear(node) for node in candidate.region):
            return None
        widths = [up.d_out for up in ups]
        experts = any(_is_expert(linear) for linear in candidate.linears)
        if not experts and not candidate.obstacles and widths not in ([width], [2 * width], [width, width]):
            return None
        return candidate if experts or self._is_residual(candidate) else None

    def _go_back(self, down: Contraction) -> _Candidate | None:
        ups: dict[fx.Node, Contraction] = {}
        region: set[fx.Node] = set()
        obstacles: list[str] = []
        pending = [down.source]
        while pending:
            node = pending.pop()
            if node in region or node in ups or node.meta["const"]:
                continue
            if node in self._results:
                ups[node] = self._results[node]
                if len(ups) > MANY:
                    return None
                continue
            region.add(node)
            data = [source for source in node.all_input_nodes if not source.meta["const"]]
            if node.target in CONVOLUTIONS:
                obstacles.append("a convolution over neighbours lies between the projections")
                data = data[:1]
            elif _looks_up(node):
                data = []  # a row of a table of weights, such as an expert's bias
            elif not _keeps_tokens(node) or not data:
                return None
            pending += data
        sources = {canonical(up.source) for up in ups.values()}
        adapters = {node for node, up in ups.items() if self._is_adapter(up, sources)}
        if adapters:
            obstacles.append("low-rank adapters (LoRA) stand beside its projections; merge them first")
        order = {node: index for index, node in enumerate(self._linears)}
        found = sorted(
            (up for node, up in ups.items() if node not in adapters), key=lambda up: order[up.node]
        )
        return _Candidate(found, region, down, obstacles) if found else None

    def _is_adapter(self, up: Contraction, sources: set[fx.Node]) -> bool:
        """Whether a map is the second of a low-rank pair beside another map of the same tensor."""
        first = self._results.get(canonical(up.source))
        return first is not None and canonical(first.source) in sources

    def _is_residual(self, candidate: _Candidate) -> bool:
        """Whether the result is added to the stream that the block's input was taken from."""
        stream = self._upstream(candidate.ups[0].source)
        seen: set[fx.Node] = set()
        pending = [candidate.down.result]
        while pending:
            node = pending.pop()
            for user in node.users:
                if user in seen or user not in self._live:
                    continue
                seen.add(user)
                if name_of(user) in {"add", "add_"}:
                    others = [n for n in user.all_input_nodes if n is not node and not n.meta["const"]]
                    others = [n for n in others if value(n).shape == value(node).shape]
                    if any(stream & self._upstream(n) for n in others):
                        return True
                    if not others:
                        continue
                passes = is_rearrangement(user) or is_dropout(user) or user.target in NORMS or _scales(user)
                if passes or name_of(user) in PICKS:
                    pending.append(user)
        return False

    def _upstream(self, node: fx.Node) -> set[fx.Node]:
        """The residual stream behind a block's input: back through norms, sums and shapes, not maps."""
        found: set[fx.Node] = set()
        pending = [node]
        while pending:
            current = pending.pop()
            if current in found or current.meta["const"]:
                continue
            found.add(current)
            if current in self._linears:
                continue
            if _keeps_tokens(current) or _is_depthwise(current):
                pending += current.all_input_nodes
            elif name_of(current) in PICKS:
                pending.append(current.all_input_nodes[0])
        return found

    def _site(self, candidate: _Candidate) -> FFNSite:
        ups, down = candidate.ups, candidate.down
        self._refuse(candidate)
        hidden = hidden_graph(ups, down)
        kind = _kind(ups, down)
        activation = name_activation(hidden, kind, down.d_in)
        placement = self._placer.place(ups, candidate.region, down)
        name = placement.entry[0]
        macs = sum(multiply_adds(linear.node) for linear in candidate.linears)
        index = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
        return FFNSite(
            name=name,
            layer=int(index[1]) if index else None,
            kind=kind,
            d_model=down.d_out,
            d_hidden=down.d_in,
            activation=activation,
            shared_calls=1,
            macs_share=macs / self._total_macs,
            placement=placement,
            up=tuple(_projection(up) for up in ups),
            down=_projection(down),
            hidden=hidden,
        )

    def _refuse(self, candidate: _Candidate) -> None:
        """Raise the reason why a candidate cannot be taken, if there is one."""
        for linear in candidate.linears:
            if linear.unsupported:
                raise Refused(linear.unsupported)
        if any(_is_expert(linear) for linear in candidate.linears):
            raise Refused("mixture of experts: a router sends each token to some of the blocks")
        if candidate.obstacles:
            raise Refused(candidate.obstacles[0])
        inside = {*candidate.region, *(up.node for up in candidate.ups), *(up.result for up in candidate.ups)}
        for node in inside:
            for user in node.users:
                if user in self._live and user not in inside and user is not candidate.down.node:
                    raise Refused("its hidden values are also used elsewhere")
        expansion = candidate.down.d_in / candidate.down.d_out
        if expansion < self._min_expansion:
            raise Refused(
                f"expansion {expansion:.2f} is below {self._min_expansion:g}: a bottleneck adapter "
                "(lower the least expansion to take it)"
            )


def _kind(ups: list[Contraction], down: Contraction) -> BlockKind:
    if len(ups) == 2:
        return BlockKind.GATED
    return BlockKind.PLAIN if ups[0].d_out == down.d_in else BlockKind.FUSED_GATED


def _projection(linear: Contraction) -> Projection:
    return Projection(linear.matrix(), linear.bias_vector, tuple(_parameter_names(linear)))


def _parameter_names(linear: Contraction) -> list[str]:
    names: list[str] = []
    pending = [linear.weight, *([linear.bias] if linear.bias else [])]
    while pending:
        node = pending.pop(0)
        if node.op == "get_attr":
            names.append(str(node.target))
        pending += node.all_input_nodes
    return names


def _reaching(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """All nodes that `nodes` depend on."""
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.all_input_nodes
    return found


def _keeps_tokens(node: fx.Node) -> bool:
    """Whether an operation may lie between the projections of a block."""
    if node.op != "call_function":
        return False
    if node.target in NORMS or node.target in REDUCTIONS or is_dropout(node) or name_of(node) == "glu":
        return True
    return is_pointwise(node) or is_rearrangement(node)


def _is_depthwise(node: fx.Node) -> bool:
    """Whether a node is a convolution that leaves the channels apart."""
    return node.target in CONVOLUTIONS and value(node.all_input_nodes[1]).shape[1] == 1


def _looks_up(node: fx.Node) -> bool:
    """Whether a node picks rows of a constant table."""
    return name_of(node) in {"index", "index_select", "embedding"} and node.all_input_nodes[0].meta["const"]


def _is_nonlinear(node: fx.Node) -> bool:
    return name_of(node) == "glu" or (
        is_pointwise(node) and not is_linear_pointwise(node) and name_of(node) != "_to_copy"
    )


def _scales(node: fx.Node) -> bool:
    """Whether a node is linear in its data, or a product of two (a gate computed elsewhere)."""
    return is_linear_pointwise(node) or name_of(node) in {"mul", "mul_"}


def _is_expert(linear: Contraction) -> bool:
    """Whether a map belongs to an expert: part of a bank of weights, or reading tokens picked by a router."""
    weight = linear.weight
    while weight.op != "get_attr" and weight.all_input_nodes:
        weight = weight.all_input_nodes[0]
    if weight.op == "get_attr" and value(weight).ndim > 2 and linear.axis != 1:
        return True
    source = canonical(linear.source)
    picked = name_of(source) in {"index", "index_select", "gather"} and len(source.all_input_nodes) > 1
    return picked and not source.all_input_nodes[-1].meta["const"]
