"""Take a recorded run apart into formulas.

Batch and lengths of the run are distinct primes, so that the number of rows of an operation tells what it
grows with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from fffconvert.errors import FFFError
from fffconvert.estimation.anatomy import Anatomy, Block, Operation, Part, Rows
from fffconvert.estimation.nodes import (
    factors,
    is_attention,
    is_picked_weight,
    is_view,
    parameter_names,
    result_of,
    row_count,
    weights_of,
)
from fffconvert.estimation.workload import Stream
from fffconvert.location import FFNSite, Sites
from fffconvert.location.capturing import Capture
from fffconvert.location.operations import multiply_adds, name_of

EXPERTS = "mixture of experts"
"""How `locate` begins its reason for leaving experts alone."""
NUMBERED = re.compile(r"(?:^|\.)\d+(?:\.|$)")
"""A path inside one of several equal layers."""
NEAR = 8
"""Maps met going back from one; with more it is up the residual stream."""


@dataclass(frozen=True)
class Sizes:
    """Of the inputs of a recorded run: primes that tell what the rows of an operation grow with.

    Attributes:
        batch: Sequences.
        length: Tokens of each; 0 if no input has an axis of tokens.
        decoder_length: Tokens of each that the decoder reads; 0 if there are none.
    """

    batch: int
    length: int
    decoder_length: int

    def rows(self, count: int) -> Rows:
        """What a number of rows grows with."""
        for length, stream in ((self.length, Stream.TOKEN), (self.decoder_length, Stream.DECODER)):
            if length and count % (self.batch * length) == 0:
                return Rows(count // (self.batch * length), stream)
        if count % self.batch == 0:
            return Rows(count // self.batch, Stream.SEQUENCE)
        return Rows(count, Stream.FORWARD)

    def stream(self, size: int) -> Stream | None:
        """The stream whose length an axis has."""
        if not size:
            return None
        return {self.length: Stream.TOKEN, self.decoder_length: Stream.DECODER}.get(size)


def dissect(
    model: nn.Module, captured: Capture, sites: Sites, sizes: Sizes, generates: Stream | None
) -> Anatomy:
    """Turn a recorded run into formulas.

    Args:
        model: The model that was recorded.
        captured: The run.
        sites: Its feedforward blocks.
        sizes: Of the inputs.
        generates: Stream that grows when the model generates.

    Raises:
        FFFError: It has neither feedforward blocks nor experts.
    """
    reader = _Reader(model, captured, sites, sizes)
    blocks = reader.blocks()
    if not blocks:
        raise FFFError("the model has no feedforward block: no linear, activation, linear beside a residual")
    counts: dict[Operation, int] = {}
    for _, operation in reader.operations:
        counts[operation] = counts.get(operation, 0) + 1
    merged = tuple(replace(operation, calls=count) for operation, count in counts.items())
    main = max(blocks, key=lambda block: block.macs * block.rows.count).rows
    return Anatomy(merged, blocks, reader.parameters(), main, generates)


class _Reader:
    """Reads operations, blocks and parameters off a recorded run.

    Attributes:
        operations: Each with its node, in the order in which they ran.
    """

    def __init__(self, model: nn.Module, captured: Capture, sites: Sites, sizes: Sizes) -> None:
        self._sizes = sizes
        self._model = model
        self._calls = captured.calls
        self._nodes = list(captured.graph.nodes)
        self._sites = sites
        self._macs = {node: macs for node in self._nodes if (macs := multiply_adds(node))}
        self._weights = {node: found for node in self._macs if (found := weights_of(node))}
        self._block_of = {
            name: index
            for index, site in enumerate(sites)
            for projection in (*site.up, site.down)
            for name in projection.parameters
        }
        named = {s.name for s in sites.skipped if s.reason.startswith(EXPERTS)}
        gathered = {self._path(node) for node in self._macs if any(map(is_picked_weight, factors(node)))}
        self._experts = sorted(named | gathered)
        maps = [i for i, node in enumerate(self._nodes) if node in self._weights]
        inner = [i for i in maps if NUMBERED.search(self._path(self._nodes[i]))] or maps
        self._layers = (inner[0], inner[-1]) if inner else (0, 0)
        self._order = {node: index for index, node in enumerate(self._nodes)}
        self._attention = self._attention_projections()
        self.operations = list(self._read())

    def blocks(self) -> tuple[Block, ...]:
        """The feedforward blocks and mixtures of experts."""
        rows = [0] * len(self._sites)
        for node, operation in self.operations:
            if operation.block is not None and node in self._weights and self._is_down(node):
                rows[operation.block] += row_count(node)
        dense = [_dense(site, self._sizes.rows(count)) for site, count in zip(self._sites, rows, strict=True)]
        return (*dense, *(self._mixture(path) for path in self._experts))

    def parameters(self) -> dict[Part, int]:
        """Parameters by the part that reads them first; those that no operation reads are other."""
        tables = [node for node in self._nodes if name_of(node) == "embedding"]
        owner = {name: Part.EMBEDDINGS for node in tables for name in parameter_names(node.all_input_nodes)}
        for node, operation in self.operations:
            for name in parameter_names(node.all_input_nodes):
                owner.setdefault(name, operation.part)
        aliases: dict[int, list[str]] = {}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            aliases.setdefault(id(parameter), []).append(name)
        totals = dict.fromkeys(Part, 0)
        for parameter in self._model.parameters():
            names = aliases[id(parameter)]
            part = next((owner[name] for name in names if name in owner), Part.OTHER)
            totals[Part.FEEDFORWARD if self._in_experts(names[0]) else part] += parameter.numel()
        return totals

    def _read(self) -> Iterator[tuple[fx.Node, Operation]]:
        inside: int | None = None
        for node in self._nodes:
            if node.op != "call_function":
                continue
            if node in self._weights:
                block = self._block(node)
                inside = block if block is not None and block < len(self._sites) else inside
                yield node, self._linear(node, block)
                if block is not None and self._is_down(node):
                    inside = None
            elif node in self._macs:
                yield node, replace(self._product(node), block=self._block(node))
            elif not node.meta["const"] and (operation := self._other(node, inside)):
                yield node, operation

    def _linear(self, node: fx.Node, block: int | None) -> Operation:
        macs, count = self._macs[node], row_count(node)
        d_out = node.meta["value"].numel() // count
        return Operation(
            name_of(node),
            Part.FEEDFORWARD if block is not None else self._part(node),
            self._sizes.rows(count),
            macs=macs // count,
            weights=sum(weight.meta["value"].numel() for weight in self._weights[node]),
            elements=macs // (count * d_out) + d_out,
            written=d_out,
            block=block,
            shape=(macs // (count * d_out), d_out),
        )

    def _product(self, node: fx.Node) -> Operation:
        """A product of data with data: attention, or tokens with the weights of their experts."""
        macs = self._macs[node]
        rows, first, others = self._axes(node)
        query, key = self._sizes.stream(first), next((size for size in others if self._sizes.stream(size)), 0)
        unit = rows * (first if query else 1) * (key or 1)
        tensors = [source.meta["value"] for source in factors(node)]
        width = sum(tensor.shape[-1] for tensor in tensors[1:]) if len(tensors) > 2 else tensors[0].shape[-1]
        stored = not is_attention(node)
        result = result_of(node)
        made = 0 if result is None else result.numel()
        return Operation(
            name_of(node),
            self._part(node),
            self._sizes.rows(rows),
            query=query,
            key=self._sizes.stream(key),
            macs=macs // unit,
            elements=float(stored),
            written=made / (rows * (first if query else 1)),
            query_elements=float(width if width != key else made / (rows * max(first, 1))),
            key_elements=sum(t.numel() for t in tensors[1:]) / (self._sizes.batch * key) if key else 0.0,
        )

    def _axes(self, node: fx.Node) -> tuple[int, int, list[int]]:
        """Of a product: how many matrices, their rows, and the other axes that grow or are summed over."""
        tensors = [source.meta["value"] for source in factors(node)]
        if node.target is torch.einsum:
            result = node.meta["value"]
            streams = [size for size in result.shape if self._sizes.stream(size)]
            inner = [
                size for size in tensors[0].shape if self._sizes.stream(size) and size not in result.shape
            ]
            return self._sizes.batch, streams[0] if streams else 0, streams[1:] + inner
        first, second = tensors[:2]
        if is_attention(node):
            return math.prod(first.shape[:-2]), first.shape[-2], [second.shape[-2]]
        count = math.prod(node.meta["value"].shape[:-2])
        return count, first.shape[-2], [second.shape[-1], first.shape[-1]]

    def _other(self, node: fx.Node, inside: int | None) -> Operation | None:
        """What is neither a linear map nor a product: it takes time for its memory and its call."""
        tensors = [source.meta["value"] for source in node.all_input_nodes if not source.meta["const"]]
        result = result_of(node)
        if name_of(node) == "getitem" or not all(isinstance(tensor, Tensor) for tensor in tensors):
            return None
        if result is None or result.ndim == 0:
            return None
        key = self._sizes.stream(result.shape[-1]) if result.ndim > 2 else None
        rows = max(1, math.prod(result.shape[:-1]))
        written = 0 if is_view(node) or name_of(node).endswith("_") else result.numel()
        moved = 0 if is_view(node) else result.numel() + sum(tensor.numel() for tensor in tensors)
        unit = rows * (result.shape[-1] if key else 1)
        block = self._block(node)
        if inside is not None and result.shape[-1] % self._sites[inside].d_hidden == 0:
            block = inside
        return Operation(
            name_of(node),
            self._place(node) if block is None else Part.FEEDFORWARD,
            self._sizes.rows(rows),
            key=key,
            elements=moved / unit,
            written=written / unit,
            block=block,
        )

    def _block(self, node: fx.Node) -> int | None:
        path = f"{self._path(node)}."
        for index, expert in enumerate(self._experts, start=len(self._sites)):
            if path.startswith(f"{expert}."):
                return index
        names = parameter_names(self._weights.get(node, ()))
        return next((self._block_of[name] for name in names if name in self._block_of), None)

    def _is_down(self, node: fx.Node) -> bool:
        block = self._block(node)
        if block is None or block >= len(self._sites):
            return False
        names = parameter_names(self._weights[node])
        return set(names) <= set(self._sites[block].down.parameters)

    def _part(self, node: fx.Node) -> Part:
        if self._in_experts(self._path(node)):
            return Part.FEEDFORWARD
        if node in self._attention:
            return Part.PROJECTIONS
        if node not in self._weights and not node.meta["const"]:
            return Part.CONTEXT
        return self._place(node)

    def _place(self, node: fx.Node) -> Part:
        """Before the layers, after them, or something else in between."""
        if name_of(node) == "embedding":
            return Part.EMBEDDINGS
        if not self._macs.get(node):
            return Part.OTHER
        first, last = self._layers
        place = self._order[node]
        return Part.EMBEDDINGS if place < first else Part.HEAD if place > last else Part.OTHER

    def _attention_projections(self) -> set[fx.Node]:
        """Linear maps that lead to queries, keys or values, or from an attention's result."""
        products = {
            node
            for node in self._macs
            if node not in self._weights and not node.meta["const"] and not self._in_experts(self._path(node))
        }
        found: set[fx.Node] = set()
        for product in products:
            found |= self._maps_behind(product.all_input_nodes, products)
        for node in self._weights:
            if self._block(node) is None and products & self._behind(node.all_input_nodes[:1], products):
                found.add(node)
        owners = {owner for node in found if NUMBERED.search(owner := self._owner(node))}
        return {
            node
            for node in self._weights
            if self._block(node) is None and (node in found or self._owner(node) in owners)
        }

    def _maps_behind(self, nodes: Iterable[fx.Node], products: set[fx.Node]) -> set[fx.Node]:
        return {node for node in self._behind(nodes, products) if node in self._weights}

    def _behind(self, nodes: Iterable[fx.Node], products: set[fx.Node]) -> set[fx.Node]:
        """Maps and products that others depend on with nothing but other operations between."""
        found: set[fx.Node] = set()
        seen: set[fx.Node] = set()
        pending = list(nodes)
        while pending and len(found) <= NEAR:
            node = pending.pop()
            if node in seen or node.meta["const"]:
                continue
            seen.add(node)
            if node in self._weights or node in products:
                found.add(node)
            else:
                pending += node.all_input_nodes
        return found if len(found) <= NEAR else set()

    def _path(self, node: fx.Node) -> str:
        stack = node.meta["stack"]
        return self._calls[stack[-1]].path if stack else ""

    def _owner(self, node: fx.Node) -> str:
        """Path of the module that a map is used in: the one around the module of a single projection."""
        path = self._path(node)
        module = self._model.get_submodule(path)
        alone = len([p for p in module.parameters() if p.ndim > 1]) <= 1
        return path.rpartition(".")[0] if alone else path

    def _in_experts(self, path: str) -> bool:
        return any(f"{path}.".startswith(f"{expert}.") for expert in self._experts)

    def _mixture(self, path: str) -> Block:
        """The experts of one layer, as one block of the neurons that a token meets."""
        nodes = [n for n, o in self.operations if o.macs and f"{self._path(n)}.".startswith(f"{path}.")]
        rows = self._sizes.rows(self._sizes.batch * max(self._sizes.length, 1))
        macs = sum(self._macs[node] for node in nodes) // (self._sizes.batch * max(self._sizes.length, 1))
        parameters = list(self._model.get_submodule(path).parameters())
        axes = max(parameter.ndim for parameter in parameters)
        shapes = [parameter.shape[-2:] for parameter in parameters if parameter.ndim == axes]
        d_model = max(set.intersection(*(set(shape) for shape in shapes)))
        inner = min(min(size for size in shape if size != d_model) for shape in shapes)
        stacked = {math.prod(shape) // (d_model * inner) for shape in shapes}
        gated = 2 in stacked or len(shapes) % 3 == 0
        return Block(
            path,
            d_model,
            macs // (d_model * (3 if gated else 2)),
            macs,
            rows,
            sum(parameter.numel() for parameter in parameters),
            gated,
            experts=True,
            activation="custom",
        )


def _dense(site: FFNSite, rows: Rows) -> Block:
    return Block(
        site.name,
        site.d_model,
        site.d_hidden,
        sum(projection.weight.numel() for projection in (*site.up, site.down)),
        rows,
        site.parameters,
        site.gated,
        experts=False,
        activation=site.activation,
        calls=site.shared_calls,
        feature_axis=site.placement.feature_axis,
    )
