"""The linear layers beside the trees, in int8 where that is faster here: attention, trunks, heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fffconvert.deployment.timing import TOKENS, size, times
from fffconvert.errors import FFFError
from fffconvert.forward import evaluation
from fffconvert.hub.attention import bfloat16_attention, use_bfloat16_attention
from fffconvert.hub.deployment import join, put_int8
from fffconvert.location.inputs import Inputs, inputs_for
from fffconvert.runtime.int8_linear import Int8Linear, int8_trunk
from fffconvert.surgery import layers_of
from fffconvert.tree import FFFLayer

HEADS, HEAD_WIDTH = 12, 64
"""Attention that is timed: that of BERT-base. Other shapes gain alike."""
FASTER = 0.95
"""Fewer bits must take less than this share of the time, so that noise alone decides nothing."""


@dataclass(frozen=True)
class LinearDeployment:
    """What computes one linear layer beside the trees, and why.

    Attributes:
        name: Name of the module; that of the layer for a trunk.
        kind: "linear" or "trunk".
        d_in: Its input width.
        d_out: Its output width.
        dtype: "int8", or the type of its parameters.
        microseconds: Median time of one call for each of `TOKENS`, as stored.
        int8_microseconds: The same in int8.
        group: Number that maps computed in one product have in common; None for one by itself.
    """

    name: str
    kind: str
    d_in: int
    d_out: int
    dtype: str
    microseconds: tuple[float, ...]
    int8_microseconds: tuple[float, ...]
    group: int | None = None


def int8_linear_layers(model: nn.Module, example_inputs: Inputs | None = None) -> list[LinearDeployment]:
    """Put linear layers into int8 where that is faster on this machine.

    Only maps that run when the model does are taken: some modules use the weights of others by themselves.
    Maps of one shape are timed once.

    Args:
        model: A converted model on the CPU, with its layers deployed; changed in place.
        example_inputs: What one forward pass takes, where it cannot be guessed: tensor, tuple or mapping.

    Returns:
        What was chosen for each map.

    Raises:
        FFFError: The model is not on the CPU.
    """
    if any(not parameter.is_cpu for parameter in model.parameters()):
        raise FFFError("int8 linear layers are computed on the CPU alone; expected `quantize_linear=none`")
    known: dict[tuple[int, ...], tuple[tuple[float, ...], tuple[float, ...]]] = {}

    def chosen(name: str, kind: str, plain: Callable[[Tensor], Tensor], made: nn.Module) -> LinearDeployment:
        d_in, *inner, d_out = _widths(made)
        key = (d_in, *inner, d_out)
        if key not in known:
            inputs = [torch.randn(tokens, d_in, dtype=torch.float32) for tokens in TOKENS]
            known[key] = times(plain, inputs), times(made, inputs)
        slow, fast = known[key]
        dtype = "int8" if _pays(fast, slow) else "float32"
        return LinearDeployment(name, kind, d_in, d_out, dtype, slow, fast)

    result = []
    used, groups = _used(model, example_inputs)
    for name in used:
        module = model.get_submodule(name)
        made = _int8_form(module)
        if made is None:
            continue
        result.append(chosen(name, "linear", module, made))
        if result[-1].dtype == "int8":
            put_int8(model, name)
    for name, layer, *_ in layers_of(model).values():
        if (trunk := int8_trunk(layer.fff_trunk_in, layer.fff_trunk_out)) is not None:
            result.append(chosen(name, "trunk", _trunk(layer), trunk))
            if result[-1].dtype == "int8":
                layer.inference.trunk = trunk
    in_int8 = {found.name for found in result if (found.kind, found.dtype) == ("linear", "int8")}
    joined = [names for names in groups if in_int8.issuperset(names)]
    for names in joined:
        join(model, names)
    number = {name: index for index, names in enumerate(joined) for name in names}
    return [replace(m, group=number.get(m.name) if m.kind == "linear" else None) for m in result]


def fast_attention(model: nn.Module) -> str:
    """Have a model attend in bfloat16 if that is faster on this machine.

    Returns:
        The type in which attention's dot products are computed from then on: "bfloat16" or "float32".
    """

    def measured(attend: Callable[..., tuple[Tensor, Any]]) -> tuple[float, ...]:
        return times(lambda x: attend(model, x, x, x, None, is_causal=False)[0], queries)

    queries = [torch.randn(1, HEADS, tokens, HEAD_WIDTH, dtype=torch.float32) for tokens in TOKENS]
    pays = _pays(measured(bfloat16_attention), measured(sdpa_attention_forward))
    return "bfloat16" if pays and use_bfloat16_attention(model) else "float32"


def _pays(fast: tuple[float, ...], slow: tuple[float, ...]) -> bool:
    """Whether times at `TOKENS` are less than `FASTER` of others."""
    return size(fast) < size(slow) + math.log(FASTER)


def _int8_form(module: nn.Module) -> Int8Linear | None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype != torch.float32:
        return None
    return Int8Linear.like(module)


def _widths(made: nn.Module) -> tuple[int, ...]:
    maps = [module for module in made.modules() if isinstance(module, Int8Linear)]
    return (maps[0].in_features, *(part.out_features for part in maps))


def _trunk(layer: FFFLayer) -> Callable[[Tensor], Tensor]:
    down, up = layer.fff_trunk_in, layer.fff_trunk_out
    assert down is not None, "asked for an int8 form first"
    assert up is not None, "there with the other"
    return lambda x: x @ down.T @ up


def _used(model: nn.Module, inputs: Inputs | None) -> tuple[list[str], list[tuple[str, ...]]]:
    """Modules that are called when the model runs, by name; and linear layers that get the same tensor."""
    called: dict[nn.Module, list[Tensor]] = {}

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        called.setdefault(module, []).extend(x for x in given[:1] if isinstance(x, Tensor))

    handles = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        with evaluation(model):
            model(**inputs_for(model, inputs))
    except FFFError:
        raise
    except Exception as error:  # whatever a foreign forward raises
        raise FFFError(
            f"the model does not run on the example inputs ({type(error).__name__}: {error}); "
            "pass example_inputs, the arguments of one forward pass"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, module in model.named_modules() if module in called]
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in names:  # the tensors are kept, so none can have taken another's place in memory
        module = model.get_submodule(name)
        if type(module) is nn.Linear and called[module]:
            groups.setdefault(tuple(map(id, called[module])), []).append(name)
    return names, [tuple(members) for members in groups.values() if len(members) > 1]
