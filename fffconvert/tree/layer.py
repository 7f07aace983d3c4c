"""`FFFLayer`, the module that takes a feedforward block's place."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fffconvert.errors import FFFError
from fffconvert.planning import FFFSpec
from fffconvert.runtime import Inference, Weights, cmm
from fffconvert.tree.routing import TrainingRouting


class FFFLayer(nn.Module):
    """Fast feedforward layer: trees side by side, of which each token visits one path each.

    T trees have N = 2^(D+1) - 1 nodes in heap order and 2^(D+1) leaves. A parameter that the specification
    does not ask for is None. There are no buffers.

    Attributes:
        spec: Shape and options.
        inference: Backend and row type where no gradient is asked for; never saved.
        routing: How it routes where one is; None for hard routing by the op. Never saved.
        replaced_weight: Name, within the module whose place it took alone, of a weight that this had.
        fff_in_weight: [T, N, d_in]
        fff_in_bias: [T, N]
        fff_out_weight: [T, B * N, d_out]; B is 2 with branch outputs (row 2n + b), else 1.
        fff_leaf_constant: [T, leaves, d_out], with branch outputs: the constants of a path, summed.
        fff_leaf_in_weight: [T, leaves, L, d_in], with leaf blocks.
        fff_leaf_in_bias: [T, leaves, L]
        fff_leaf_gate_weight: [T, leaves, L, d_in], with gated leaf blocks: a(in) * gate.
        fff_leaf_gate_bias: [T, leaves, L]
        fff_leaf_out_weight: [T, leaves, L, d_out]
        fff_leaf_threshold: [T, leaves, L], with sparse leaf blocks: activations no larger count as 0.
        fff_trunk_in: [R, d_in], with a trunk.
        fff_trunk_out: [R, d_out]
        fff_bias: [d_out]

    Reference: arXiv 2311.10770, section 3; arXiv 2308.14711 for leaf blocks.
    """

    replaced_weight: str | None = None
    fff_in_weight: nn.Parameter
    fff_in_bias: nn.Parameter
    fff_out_weight: nn.Parameter
    fff_leaf_constant: nn.Parameter | None
    fff_leaf_in_weight: nn.Parameter | None
    fff_leaf_in_bias: nn.Parameter | None
    fff_leaf_gate_weight: nn.Parameter | None
    fff_leaf_gate_bias: nn.Parameter | None
    fff_leaf_out_weight: nn.Parameter | None
    fff_leaf_threshold: nn.Parameter | None
    fff_trunk_in: nn.Parameter | None
    fff_trunk_out: nn.Parameter | None
    fff_bias: nn.Parameter

    def __init__(
        self, spec: FFFSpec, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.inference = Inference()
        self.routing: TrainingRouting | None = None
        for name, shape in _shapes(spec).items():
            absent = 0 in shape
            parameter = None if absent else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: input rows as `nn.Linear` does, output rows for the active width."""
        rows, outputs = self.spec.d_in**-0.5, self.spec.active_width**-0.5
        for name, parameter in self.named_parameters():
            if name in ("fff_bias", "fff_leaf_constant", "fff_leaf_threshold"):
                nn.init.zeros_(parameter)
            else:
                bound = outputs if "_out" in name else rows
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer.

        Args:
            x: [..., d_in], or [batch, d_in, ...] where the feature axis is 1.

        Returns:
            [..., d_out], or [batch, d_out, ...], in the dtype of `x`.
        """
        axis = self.spec.feature_axis
        if axis != -1:
            x = x.movedim(axis, -1)
        y = self._differentiable(x) if self._wants_gradient(x) else self._infer(x)
        return y if axis == -1 else y.movedim(-1, axis)

    def train(self, mode: bool = True) -> FFFLayer:
        """Set the training mode; what inference prepared is made anew from the parameters as they are."""
        self.inference.forget()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.inference.forget()
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.inference.forget()
        super()._load_from_state_dict(*args, **kwargs)

    def _wants_gradient(self, x: Tensor) -> bool:
        if not torch.is_grad_enabled():
            return False
        return x.requires_grad or any(parameter.requires_grad for parameter in self.parameters())

    def _differentiable(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and self.inference.deployed and not self.training:
            _say_that_a_deployment_has_no_effect()
        tokens = x.reshape(-1, x.shape[-1])
        if self.routing is None:
            y, _, _ = cmm(tokens, self.weights, self.spec.activation)
        else:
            y = self.routing(tokens, self.weights, self.spec.activation)
        y = y + self.fff_bias
        if self.fff_trunk_in is not None and self.fff_trunk_out is not None:
            y = y + tokens @ self.fff_trunk_in.T @ self.fff_trunk_out
        return y.to(x.dtype).view(*x.shape[:-1], self.spec.d_out)

    def _infer(self, x: Tensor) -> Tensor:
        parameters = self._parameters
        y = self.inference(x, parameters, self._weights, self.spec.activation)
        trunk_in, trunk_out = parameters["fff_trunk_in"], parameters["fff_trunk_out"]
        if trunk_in is not None and trunk_out is not None and self.inference.dense is None:
            trunk = self.inference.trunk
            y += x @ trunk_in.T @ trunk_out if trunk is None else trunk(x)
        return y

    @property
    def weights(self) -> Weights:
        """The trees' parameters, as the op takes them."""
        return Weights(
            self.fff_in_weight,
            self.fff_in_bias,
            self.fff_out_weight,
            self.fff_leaf_constant,
            self.fff_leaf_in_weight,
            self.fff_leaf_in_bias,
            self.fff_leaf_gate_weight,
            self.fff_leaf_gate_bias,
            self.fff_leaf_out_weight,
            self.fff_leaf_threshold,
        )

    def _weights(self) -> tuple[Weights, Tensor]:
        return self.weights, self.fff_bias

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        fields = dataclasses.fields(self.spec)
        values = {field.name: getattr(self.spec, field.name) for field in fields}
        return ", ".join(f"{f.name}={values[f.name]!r}" for f in fields if values[f.name] != f.default)

    @classmethod
    def from_published(cls, state: Mapping[str, Tensor], *, depth: int) -> FFFLayer:
        """Take over an `FFF` layer of the paper's own training code (UltraFastBERT).

        It is the plain layer with GELU, without output bias; its neurons stand tree by tree in heap order.

        Args:
            state: Its state dict: `linear_in.weight` [T * N, d_in], `linear_in.bias` [T * N] and
                `linear_out.weight` [d_out, T * N].
            depth: Depth D of its trees, which the shapes alone do not tell.

        Returns:
            A layer with the same outputs, in the dtype and on the device of `state`.

        Raises:
            FFFError: A tensor is missing or has a shape that the depth does not explain.

        Reference: arXiv 2311.10770, section 3.
        """
        names = ("linear_in.weight", "linear_in.bias", "linear_out.weight")
        missing = [name for name in names if name not in state]
        if missing:
            raise FFFError(f"no {', '.join(missing)}; expected the state dict of one published FFF layer")
        in_weight, in_bias, out_weight = (state[name].detach() for name in names)
        fits = in_weight.shape[:1] == in_bias.shape == out_weight.shape[1:] and in_weight.dim() == 2
        if not fits:
            shapes = ", ".join(f"{name} {list(state[name].shape)}" for name in names)
            raise FFFError(f"found {shapes}; expected [neurons, d_in], [neurons] and [d_out, neurons]")
        spec = FFFSpec(in_weight.shape[1], len(out_weight), depth)
        neurons = len(in_bias)
        if neurons % spec.nodes:
            raise FFFError(f"found {neurons} neurons; expected a multiple of {spec.nodes} at depth {depth}")
        spec = dataclasses.replace(spec, trees=neurons // spec.nodes, activation="gelu")
        layer = cls(spec, device=in_weight.device, dtype=in_weight.dtype)
        with torch.no_grad():
            layer.fff_in_weight.copy_(in_weight.view_as(layer.fff_in_weight))
            layer.fff_in_bias.copy_(in_bias.view_as(layer.fff_in_bias))
            layer.fff_out_weight.copy_(out_weight.T.reshape(layer.fff_out_weight.shape))
        return layer


@cache
def _say_that_a_deployment_has_no_effect() -> None:
    """Once in a process: it would be said for each layer of each call."""
    warnings.warn(
        "a deployed model was called while gradients are recorded, so its layers compute as before the "
        "deployment; call it under torch.no_grad() or torch.inference_mode()",
        stacklevel=4,
    )


def _shapes(spec: FFFSpec) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter; it has a 0 where the specification does not ask for the parameter."""
    trees, nodes, leaves, width = spec.trees, spec.nodes, spec.leaves, spec.leaf_width
    branches = 2 if spec.branch_outputs else 1
    gate = width if spec.leaf_gated else 0
    return {
        "fff_in_weight": (trees, nodes, spec.d_in),
        "fff_in_bias": (trees, nodes),
        "fff_out_weight": (trees, branches * nodes, spec.d_out),
        "fff_leaf_constant": (trees, leaves if spec.branch_outputs else 0, spec.d_out),
        "fff_leaf_in_weight": (trees, leaves, width, spec.d_in),
        "fff_leaf_in_bias": (trees, leaves, width),
        "fff_leaf_gate_weight": (trees, leaves, gate, spec.d_in),
        "fff_leaf_gate_bias": (trees, leaves, gate),
        "fff_leaf_out_weight": (trees, leaves, width, spec.d_out),
        "fff_leaf_threshold": (trees, leaves, width if spec.leaf_sparsity else 0),
        "fff_trunk_in": (spec.trunk, spec.d_in),
        "fff_trunk_out": (spec.trunk, spec.d_out),
        "fff_bias": (spec.d_out,),
    }
