"""What a deployed folder says about how it is to be computed, and how a loaded model is made to do so."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from fffconvert.errors import FFFError
from fffconvert.hub.attention import use_bfloat16_attention
from fffconvert.options.deploy import TARGETS
from fffconvert.runtime import Inference, Scales
from fffconvert.runtime.heap import keep_freed_memory
from fffconvert.runtime.int8_linear import Int8Linear, Int8Part, Together, int8_trunk
from fffconvert.runtime.rows import ROW_DTYPES
from fffconvert.surgery import layers_of, names_of
from fffconvert.tree import FFFLayer

ATTENTION = ("float32", "bfloat16")


@dataclass(frozen=True)
class Deployment:
    """How a model is computed. Its weights are stored as they were: another machine may want another form.

    Attributes:
        target: "cpu" or "cuda".
        rows: Type of the stored rows of each FFF layer, by the layer's name.
        int8_linears: Names of the linear layers that compute in int8.
        int8_trunks: Names of the FFF layers whose trunks do.
        int8_groups: Names of maps among them that have the same input, and are computed in one product.
        attention: Type in which attention's dot products are computed: "bfloat16", or "float32" as stored.
    """

    target: str
    rows: Mapping[str, str]
    int8_linears: tuple[str, ...] = ()
    int8_trunks: tuple[str, ...] = ()
    int8_groups: tuple[tuple[str, ...], ...] = ()
    attention: str = "float32"

    def __post_init__(self) -> None:
        checked = [("row type", dtype, tuple(ROW_DTYPES)) for dtype in self.rows.values()]
        checked += [("target", self.target, TARGETS), ("attention", self.attention, ATTENTION)]
        for name, value, known in checked:
            if value not in known:
                raise FFFError(f"{name} is {value!r}; expected one of {', '.join(known)}")


def apply(model: nn.Module, deployment: Deployment) -> None:
    """Have a model compute as it was deployed. It is for inference alone afterwards.

    Names may be with or without the prefix that heads put before those of the model inside; what this model
    does not have is left out.
    """
    layers = {placed.path: placed.layer for placed in layers_of(model).values()}
    on_cpu = all(layer.fff_bias.is_cpu for layer in layers.values())
    for name, found in _found(model, deployment.rows, layers):
        dtype = deployment.rows[name]
        if dtype == "bfloat16":
            _halve_rows(layers[found])
        layers[found].inference = Inference("auto", ROW_DTYPES[dtype] if dtype == "int8" else None)
    if not on_cpu and (deployment.int8_linears or deployment.int8_trunks):
        warnings.warn(
            "int8 linear layers are computed on the CPU alone; on this device they stay as stored",
            stacklevel=2,
        )
    if on_cpu:
        keep_freed_memory()
        linears = dict(model.named_modules(remove_duplicate=False))
        for _, found in _found(model, deployment.int8_linears, linears):
            put_int8(model, found)
        for names in deployment.int8_groups:
            join(model, [found for _, found in _found(model, names, linears)])
        for _, found in _found(model, deployment.int8_trunks, layers):
            layer = layers[found]
            layer.inference.trunk = int8_trunk(layer.fff_trunk_in, layer.fff_trunk_out)
        if deployment.attention == "bfloat16":
            use_bfloat16_attention(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def _halve_rows(layer: FFFLayer) -> None:
    """Keep a layer's rows in bfloat16 alone; its biases stay as they are."""
    for name in Scales._fields:
        rows = getattr(layer, f"fff_{name}")
        if rows is not None:
            rows.data = rows.data.bfloat16()


def put_int8(model: nn.Module, name: str) -> None:
    """Replace one linear layer, wherever the model has it, by its int8 form."""
    module = model.get_submodule(name)
    made = Int8Linear.like(module)
    if made is None:
        return
    for path, other in list(model.named_modules(remove_duplicate=False)):
        if other is module:
            model.set_submodule(path, made)


def join(model: nn.Module, names: Sequence[str]) -> None:
    """Compute int8 maps of one input in one product."""
    maps = [model.get_submodule(name) for name in names]
    plain = [module for module in maps if type(module) is Int8Linear]
    if len(plain) < 2 or len(plain) < len(maps):
        return
    together = Together(plain)
    for index, one in enumerate(plain):
        made = Int8Part(one, together, index)
        for path, other in list(model.named_modules(remove_duplicate=False)):
            if other is one:
                model.set_submodule(path, made)


def _found(
    model: nn.Module, names: Iterable[str], present: Mapping[str, nn.Module]
) -> Iterator[tuple[str, str]]:
    """Each name with the one that this model has for it."""
    for name in names:
        found = next((candidate for candidate in names_of(name, model) if candidate in present), None)
        if found is not None:
            yield name, found
