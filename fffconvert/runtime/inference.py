"""How one layer computes where no gradient is asked for: on which backend, from rows of which type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fffconvert.runtime import cpu, reference
from fffconvert.runtime.int8_linear import int8_trunk
from fffconvert.runtime.ops import cmm_inference
from fffconvert.runtime.rows import store_rows
from fffconvert.runtime.walk import walk
from fffconvert.runtime.weights import Scales, Weights


class Inference:
    """Backend and row type of one layer, and what was prepared for them.

    Never saved, and prepared anew in a copy of the layer. What is prepared follows the parameters: rows of
    the parameters' own type are read where they lie, others are stored again when a parameter has changed.
    Writing in place through `parameter.data` (`p.data.mul_(2)`) is a change that torch does not count, so it
    goes unnoticed until the layer is told to `forget`: by `train`, `eval`, `to`, `load_state_dict`, `deploy`.

    Args:
        backend: "auto" for the best that takes a call's tensors, "reference", "standard" for operators that
            every runtime has, or "dense".
        dtype: Type of the stored rows; None for that of the parameters.
        dense: With "dense", the block [..., d_in] to [..., d_out] that computes instead.
        trunk: The int8 form of the trunk, [..., d_in] to [..., d_out]; None for its parameters as they are.
        deployed: It was chosen by a deployment, which somebody counts on.
    """

    def __init__(
        self,
        backend: str = "auto",
        dtype: torch.dtype | None = None,
        dense: nn.Module | None = None,
        trunk: nn.Module | None = None,
        deployed: bool = False,
    ) -> None:
        self.backend = backend
        self.dtype = dtype
        self.dense = dense
        self.trunk = trunk
        self.deployed = deployed
        self._state: list[int] = []
        self._copied = False
        self._stored: tuple[Weights, Scales] | None = None
        self._native: cpu.PreparedLayer | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Inference, (self.backend, self.dtype, self.dense, self.trunk, self.deployed)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the rows that are stored in another type than the parameters' own."""
        tensors = chain(*self._stored) if self._stored is not None else ()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)

    def forget(self) -> None:
        """Prepare anew at the next call, from the parameters as they are then."""
        self._state, self._stored, self._native = [], None, None

    def __call__(
        self,
        x: Tensor,
        parameters: Mapping[str, Tensor | None],
        weights: Callable[[], tuple[Weights, Tensor]],
        activation: str,
    ) -> Tensor:
        """Compute the trees and the output bias.

        Args:
            x: [..., d_in]
            parameters: All parameters of the layer, to see when they change.
            weights: Gives the trees and the output bias, [d_out].
            activation: A key of `ACTIVATIONS`.

        Returns:
            [..., d_out] in the dtype of `x`.
        """
        if self.dense is not None:
            result: Tensor = self.dense(x)
            return result
        if _eager(x):
            if self._state_of(parameters) != self._state:
                self._prepare(x, parameters, *weights(), activation)
                self._state = self._state_of(parameters)
            if self._native is not None and self._native.takes(x):
                return self._native(x)
        return self._through_op(x, *weights(), activation)

    def _state_of(self, parameters: Mapping[str, Tensor | None]) -> list[int]:
        """Differs when a parameter lies elsewhere, and, where copies were made, when one was written to."""
        present = [p for p in parameters.values() if p is not None]
        state = [p.data_ptr() for p in present]
        if self._copied:
            state += [0 if p.is_inference() else p._version for p in present]
        return state

    def _prepare(
        self,
        x: Tensor,
        parameters: Mapping[str, Tensor | None],
        weights: Weights,
        bias: Tensor,
        activation: str,
    ) -> None:
        self.forget()
        stored, scales = self._rows(weights)
        if self.trunk is not None:
            self.trunk = int8_trunk(parameters["fff_trunk_in"], parameters["fff_trunk_out"])
        self._copied = self._stored is not None or self.trunk is not None
        if self.backend == "auto" and all(w is None or w.is_cpu for w in stored) and cpu.takes(x, stored):
            self._native = cpu.PreparedLayer(bias, stored, scales, activation)
            self._copied |= self._native.copied

    def _rows(self, weights: Weights) -> tuple[Weights, Scales]:
        if self.dtype is None or self.dtype == weights.in_weight.dtype:
            return weights, Scales()
        if self._stored is None or self._stored[0].in_weight.device != weights.in_weight.device:
            self._stored = store_rows(weights, self.dtype)
        return self._stored

    def _through_op(self, x: Tensor, weights: Weights, bias: Tensor, activation: str) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        stored, scales = self._rows(weights)
        compute = {"reference": reference.inference, "standard": walk}.get(self.backend, cmm_inference)
        return compute(tokens, bias, stored, scales, activation).view(*x.shape[:-1], len(bias))


def _eager(
    x: Tensor,
    # Bound once: each look-up costs as much as the question itself, and one token is computed in 4 µs.
    compiling: Callable[[], bool] = torch.compiler.is_compiling,
    modes: Callable[[], int] = torch._C._len_torch_dispatch_stack,
    wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor,
    tracing: Callable[[], object] = torch._C._get_tracing_state,
) -> bool:
    """Whether a plain tensor is computed now, with nobody looking on: no compiler, tracer or mode."""
    return type(x) is Tensor and not (compiling() or modes() or wrapped(x) or tracing())
