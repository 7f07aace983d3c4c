"""How one layer computes where no gradient is asked for: on which backend, from rows of which type."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fffconvert.private_names import (
    _get_tracing_state,
    _len_torch_dispatch_stack,
    is_functorch_wrapped_tensor,
    version_of,
)
from fffconvert.runtime.backend import Prepared
from fffconvert.runtime.backends import BACKENDS, named
from fffconvert.runtime.int8_linear import int8_trunk
from fffconvert.runtime.ops import cmm_inference
from fffconvert.runtime.rows import store_rows
from fffconvert.runtime.rules import check_layer
from fffconvert.runtime.walking import walk
from fffconvert.runtime.weights import Scales, Weights


class _Prepared(NamedTuple):
    """What was prepared for one state of the parameters; never changed, so that a call uses one or the other.

    Attributes:
        addresses: Where the parameters lay.
        versions: How often each had been written to; None where nothing was copied, so that writes show.
        rows: The weights as they are stored, with the scales of int8 rows.
        own: Whether the rows are copies in another type.
        layer: A backend's own form; None where it has none.
    """

    addresses: list[int]
    versions: list[int] | None
    rows: tuple[Weights, Scales]
    own: bool
    layer: Prepared | None


class Inference:
    """Backend and row type of one layer, and what was prepared for them.

    Never saved, and prepared anew in a copy of the layer. What is prepared follows the parameters: rows of
    the parameters' own type are read where they lie, others are stored again when a parameter has changed.
    Writing in place through `parameter.data` (`p.data.mul_(2)`) is a change that torch does not count, so it
    goes unnoticed until the layer is told to `forget`: by `train`, `eval`, `to`, `load_state_dict`, `deploy`.
    Calls may come from several threads at once.

    Args:
        backend: "auto" for the best that takes a call's tensors, the name of one in `BACKENDS` to have that
            where it takes them, "standard" for operators that every runtime has, or "dense".
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
        self._prepared: _Prepared | None = None
        self._preparing = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Inference, (self.backend, self.dtype, self.dense, self.trunk, self.deployed)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the rows that are stored in another type than the parameters' own."""
        prepared = self._prepared
        tensors = chain(*prepared.rows) if prepared is not None and prepared.own else ()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)

    def forget(self) -> None:
        """Prepare anew at the next call, from the parameters as they are then."""
        self._prepared = None

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
        eager = _eager(x)
        if eager:
            layer = self._current(parameters, weights, activation).layer
            if layer is not None and layer.takes(x):
                return layer(x)
        return self._unprepared(x, *weights(), activation, eager)

    def _current(
        self,
        parameters: Mapping[str, Tensor | None],
        weights: Callable[[], tuple[Weights, Tensor]],
        activation: str,
    ) -> _Prepared:
        """What is prepared for the parameters as they are now; one thread prepares, others wait for it."""
        present = [p for p in parameters.values() if p is not None]
        prepared = self._prepared
        if prepared is None or not _holds(prepared, present):
            with self._preparing:
                prepared = self._prepared
                if prepared is None or not _holds(prepared, present):
                    prepared = self._prepare(parameters, present, *weights(), activation)
                    self._prepared = prepared
        return prepared

    def _prepare(
        self,
        parameters: Mapping[str, Tensor | None],
        present: list[Tensor],
        weights: Weights,
        bias: Tensor,
        activation: str,
    ) -> _Prepared:
        # Read first: what is written meanwhile is then seen by the next call.
        addresses, versions = [p.data_ptr() for p in present], _versions(present)
        dtype = self.dtype or weights.in_weight.dtype
        own = dtype != weights.in_weight.dtype
        stored, scales = store_rows(weights, dtype) if own else (weights, Scales())
        if self.trunk is not None:
            self.trunk = int8_trunk(parameters["fff_trunk_in"], parameters["fff_trunk_out"])
        layer = None
        if self.backend != "standard":
            check_layer(bias, stored, scales, activation)
            asked = reversed(BACKENDS) if self.backend == "auto" else filter(None, [named(self.backend)])
            forms = (backend.prepare(bias, stored, scales, activation) for backend in asked)
            layer = next((form for form in forms if form is not None), None)
        copied = own or self.trunk is not None or (layer is not None and layer.copied)
        return _Prepared(addresses, versions if copied else None, (stored, scales), own, layer)

    def _rows(self, weights: Weights) -> tuple[Weights, Scales]:
        if self.dtype is None or self.dtype == weights.in_weight.dtype:
            return weights, Scales()
        prepared = self._prepared
        if prepared is None or prepared.rows[0].in_weight.device != weights.in_weight.device:
            return store_rows(weights, self.dtype)
        return prepared.rows

    def _unprepared(self, x: Tensor, weights: Weights, bias: Tensor, activation: str, eager: bool) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        stored, scales = self._rows(weights)
        compute = walk if self.backend == "standard" else cmm_inference
        insisted = named(self.backend) if eager else None  # who looks on is to see one op
        if insisted is not None and insisted.why_not("inference", tokens, stored, bias) is None:
            compute = insisted.inference
        return compute(tokens, bias, stored, scales, activation).view(*x.shape[:-1], len(bias))


def _holds(prepared: _Prepared, present: list[Tensor]) -> bool:
    """Whether no parameter lies elsewhere, or, where copies were made, was written to."""
    if prepared.addresses != [p.data_ptr() for p in present]:
        return False
    return prepared.versions is None or prepared.versions == _versions(present)


def _versions(present: list[Tensor]) -> list[int]:
    return [0 if p.is_inference() else version_of(p) for p in present]


def _eager(
    x: Tensor,
    # Bound once: each look-up costs as much as the question itself, and one token is computed in 4 µs.
    compiling: Callable[[], bool] = torch.compiler.is_compiling,
    modes: Callable[[], int] = _len_torch_dispatch_stack,
    wrapped: Callable[[Tensor], bool] = is_functorch_wrapped_tensor,
    tracing: Callable[[], object] = _get_tracing_state,
) -> bool:
    """Whether a plain tensor is computed now, with nobody looking on: no compiler, tracer or mode."""
    return type(x) is Tensor and not (compiling() or modes() or wrapped(x) or tracing())
