"""What is computed: a layer, the block that it replaces, and inputs. Random, or out of a real model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fffconvert import hub
from fffconvert.benchmarks.dense import DenseFFN
from fffconvert.benchmarks.settings import LayerBench
from fffconvert.conversion import prepare
from fffconvert.errors import FFFError
from fffconvert.fit import default_corpus, fit_layer
from fffconvert.fit.calibrate import Batch, block_inputs, text_batches, with_decoder_inputs
from fffconvert.fit.length import longest
from fffconvert.forward import evaluation
from fffconvert.location import FFNSite
from fffconvert.options import ConvertOptions
from fffconvert.planning import FFFSpec, LayerForm
from fffconvert.planning.selection import known_activation
from fffconvert.surgery import layers_of
from fffconvert.tree import FFFLayer

PAPER_SHAPE = (768, 3072)
DISTINCT_TOKENS = 4096
"""Calls take turns through inputs that hold at least so many tokens, and at least `BUFFERS` of them."""
BUFFERS = 3
FIT_TOKENS = 16_384
LENGTH = 128
CHARACTERS_PER_TOKEN = 8


@dataclass(frozen=True)
class Workload:
    """A layer to measure.

    Attributes:
        inputs: "random", or the name of the block whose inputs are taken.
        layer: In float32.
        block: The dense block that it replaces.
        d_hidden: Width of that block.
        pool: [pool tokens, d_model] of real activations; None draws normal numbers.
    """

    inputs: str
    layer: FFFLayer
    block: nn.Module
    d_hidden: int
    pool: Tensor | None = None

    @property
    def name(self) -> str:
        """The layer's shape in short, as 1x11."""
        return f"{self.layer.spec.trees}x{self.layer.spec.depth}"

    @property
    def tree_size(self) -> int:
        """Width of a dense block with as many neurons as the trees have nodes."""
        return self.layer.spec.trees * self.layer.spec.nodes

    def bound(self, d_hidden: int) -> float:
        """How many times the layer's multiply-adds a plain block of this width needs."""
        spec = self.layer.spec
        return d_hidden * (spec.d_in + spec.d_out) / spec.macs_per_token

    @property
    def block_bound(self) -> float:
        """The same, against the block replaced (a gated one has more weights than a plain one)."""
        weights = sum(p.numel() for p in self.block.parameters() if p.dim() == 2)
        return weights / self.layer.spec.macs_per_token

    def batches(self, tokens: int, seed: int) -> list[Tensor]:
        """Distinct inputs of so many tokens each: [tokens, d_model].

        Raises:
            FFFError: There are fewer real activations than that.
        """
        count = max(BUFFERS, math.ceil(DISTINCT_TOKENS / tokens))
        if self.pool is None:
            generator = torch.Generator().manual_seed(seed)
            return list(
                torch.randn(count, tokens, self.layer.spec.d_in, generator=generator, dtype=torch.float32)
            )
        count = min(count, len(self.pool) // tokens)
        if not count:
            raise FFFError(f"{len(self.pool)} real activations were found; `sizes` asks for {tokens}")
        return list(self.pool[: count * tokens].view(count, tokens, -1))


def workloads(settings: LayerBench) -> Iterator[Workload]:
    """Everything that the settings ask for, one after the other."""
    source = None if settings.model is None else _RealModel(settings)
    d_model, d_hidden = source.shape if source else settings.shape or PAPER_SHAPE
    for trees, depth in settings.forests:
        yield random_workload(FFFSpec(d_model, d_model, depth, trees), d_hidden, settings.seed)
    if source:
        for workload in source.workloads(settings.forests):
            workload.batches(max(settings.sizes), settings.seed)  # refuses too many before anything is timed
            yield workload


def random_workload(spec: FFFSpec, d_hidden: int, seed: int) -> Workload:
    """A layer and a block of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = FFFLayer(spec).eval()
        return Workload("random", layer, DenseFFN(spec.d_in, d_hidden).eval(), d_hidden)


class _RealModel:
    """Blocks of a dense model, to which layers are fitted, or the layers of a converted one."""

    def __init__(self, settings: LayerBench) -> None:
        loaded = hub.load(str(settings.model))
        self.model = loaded.model
        self.settings = settings
        self.layers = {name: placed.layer for name, placed in layers_of(self.model).items()}
        self.tokens = max(DISTINCT_TOKENS, 2 * max(settings.sizes))
        wanted = self.tokens + (0 if self.layers else FIT_TOKENS)
        if loaded.tokenizer is None:
            raise FFFError(f"{settings.model} has no tokenizer, so there is no text to get activations from")
        length = longest(self.model, loaded.tokenizer, LENGTH)
        texts = default_corpus(CHARACTERS_PER_TOKEN * wanted)
        batches = text_batches(texts, loaded.tokenizer, tokens=wanted, length=length, seed=settings.seed)
        self.batches = with_decoder_inputs(self.model, batches)
        self.sites: list[FFNSite] = [] if self.layers else self._sites()
        self.shape = self._shape()

    def _sites(self) -> list[FFNSite]:
        options = ConvertOptions(
            depth=1, layer=LayerForm.PAPER, include=self.settings.blocks, calibration=self.batches
        )
        sites = list(prepare(self.model, options).sites)
        return sites if self.settings.blocks else [sites[len(sites) // 2]]

    def _shape(self) -> tuple[int, int]:
        asked = self.settings.shape
        if self.sites:
            widths = {(site.d_model, site.d_hidden) for site in self.sites}
            if len(widths) > 1 or (asked and asked not in widths):
                found = ", ".join(f"{d}x{hidden}" for d, hidden in sorted(widths))
                raise FFFError(
                    f"the model's blocks are {found}; leave out `shape`, or name others by `blocks`"
                )
            return widths.pop()
        widths = {(layer.spec.d_in, layer.spec.d_out) for layer in self.layers.values()}
        d_model = next(iter(widths))[0]
        if len(widths) > 1 or not asked or asked[0] != d_model:
            raise FFFError(
                f"the converted model's layers have d_model {d_model} and no original block; "
                f"give its width, as in `shape={d_model}x{4 * d_model}`"
            )
        return asked

    def workloads(self, forests: tuple[tuple[int, int], ...]) -> Iterator[Workload]:
        if self.layers:
            yield from self._converted()
        for site in tqdm(self.sites, desc="real activations", unit="block", disable=None):
            x = block_inputs(self.model, site, self.batches)
            cut = min(FIT_TOKENS, len(x) // 3)  # what is timed is not what was fitted on
            fitted, pool = x[:cut], x[cut:]
            block = site.dense().float().eval()
            with torch.no_grad():
                y = block(fitted)
            for trees, depth in forests:
                activation = known_activation(site.activation, site.name)
                spec = FFFSpec(site.d_model, site.d_model, depth, trees, activation=activation)
                yield Workload(site.name, fit_layer(fitted, y, spec).eval(), block, site.d_hidden, pool)

    def _converted(self) -> Iterator[Workload]:
        names = list(self.layers)
        chosen = [names[len(names) // 2]]
        if self.settings.blocks:
            chosen = [n for n in names if any(pattern in n for pattern in self.settings.blocks)]
        if not chosen:
            raise FFFError(f"`blocks` matches no layer; layers are named like {names[0]!r}")
        for name in tqdm(chosen, desc="real activations", unit="layer", disable=None):
            layer = self.layers[name].float()
            pool = _inputs_of(self.model, layer, self.batches)[: self.tokens]
            layer.spec = replace(layer.spec, feature_axis=-1)
            yield Workload(name, layer, DenseFFN(*self.shape).eval(), self.shape[1], pool)


def _inputs_of(model: nn.Module, layer: FFFLayer, batches: list[Batch]) -> Tensor:
    """What a layer is given when the model runs: [tokens, d_in]."""
    taken: list[Tensor] = []

    def take(module: nn.Module, args: tuple[Any, ...]) -> None:
        taken.append(args[0].movedim(layer.spec.feature_axis, -1).reshape(-1, layer.spec.d_in).float())

    handle = layer.register_forward_pre_hook(take)
    try:
        with evaluation(model):
            for batch in batches:
                model(**batch)
    finally:
        handle.remove()
    return torch.cat(taken)
