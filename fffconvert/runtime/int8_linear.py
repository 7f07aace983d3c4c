"""Linear maps with int8 weights on the CPU, computed by torch's own quantized kernels (oneDNN or FBGEMM)."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fffconvert.errors import FFFError
from fffconvert.private_names import _is_vnni_supported

LIMIT = 127
"""Largest int8 weight: symmetric, one scale for each output."""


class Int8Linear(nn.Module):
    """A linear map whose weights are int8 and whose inputs are rounded to 8 bits as they come.

    Weights are symmetric with one scale for each output, inputs have one scale and zero point for each call.
    It has no parameters; its state dict holds the rounded weight in floating point, so that what is saved
    can be read by the plain `nn.Linear` in whose place it stands, and gives the same when rounded again.

    Args:
        weight: [d_out, d_in]
        bias: [d_out], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.training = False
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        weight = weight.detach().float()
        scale = weight.abs().amax(1) / LIMIT
        scale = scale.where(scale > torch.finfo(torch.float32).tiny, 1.0)  # QNNPACK takes none near 0
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # quantized tensors are deprecated; only the kernels' packing needs one
            rounded = torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8)
        self._pack(rounded, None if bias is None else bias.detach().float())

    @classmethod
    def like(cls, module: nn.Module) -> Int8Linear | None:
        """The int8 form of a linear map; None for other modules.

        Taken are `nn.Linear` itself (what derives from it may use its weight in ways of its own) and
        transformers' `Conv1D`, which stores the weight as [d_in, d_out].
        """
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if type(module) is nn.Linear and isinstance(weight, Tensor):
            return cls(weight, bias)
        if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.dim() == 2:
            made = cls(weight.T, bias)
            made._transposed = True
            return made
        return None

    _transposed = False

    def _pack(self, rounded: Tensor, bias: Tensor | None) -> None:
        engine = best_engine()
        self._biased = bias is not None  # QNNPACK gives zeros back where there was none
        self._reduce_range = engine != "onednn"  # FBGEMM's sums of two products could overflow 16 bits
        with quantized_engine(engine):
            self._packed = torch.ops.quantized.linear_prepack(rounded, bias)

    def _unpack(self) -> tuple[Tensor, Tensor | None]:
        rounded, bias = torch.ops.quantized.linear_unpack(self._packed)
        return rounded, bias

    @property
    def weight(self) -> Tensor:
        """The rounded weight in floating point, as the module replaced had it."""
        dense: Tensor = self._unpack()[0].dequantize().to(self.dtype)
        return dense.T if self._transposed else dense

    @property
    def bias(self) -> Tensor | None:
        """[d_out], or None."""
        bias = self._unpack()[1] if self._biased else None
        return None if bias is None else bias.detach().to(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights, scales and bias."""
        return self.out_features * (self.in_features + 4 + (4 if self._biased else 0))

    def forward(self, x: Tensor) -> Tensor:
        """Compute [..., d_in] to [..., d_out], in the dtype of `x`; not differentiable."""
        self._refuse_training()
        single = x if x.dtype == torch.float32 else x.float()
        y: Tensor = torch.ops.quantized.linear_dynamic(single, self._packed, self._reduce_range)
        return y if x.dtype == torch.float32 else y.to(x.dtype)

    def _refuse_training(self) -> None:
        if self.training:
            raise FFFError("int8 linear maps cannot be trained; train the model from which this was deployed")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight
        if (bias := self.bias) is not None:
            destination[f"{prefix}bias"] = bias

    def __deepcopy__(self, memo: dict[int, Any]) -> Int8Linear:
        made = copy.copy(self)  # what is packed never changes
        memo[id(self)] = made
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.weight, self.bias, self._transposed)

    def extra_repr(self) -> str:
        """Its widths."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Together:
    """Int8 maps of one input, computed in one product when the first of them is asked.

    Args:
        maps: Maps that are called with the same tensor, one after another.
    """

    def __init__(self, maps: Sequence[Int8Linear]) -> None:
        biases = [
            torch.zeros(m.out_features, dtype=torch.float32) if m.bias is None else m.bias.float()
            for m in maps
        ]
        weight = torch.cat([m.weight for m in maps])
        self._all = Int8Linear(weight, torch.cat(biases) if any(b.any() for b in biases) else None)
        self._sizes = [m.out_features for m in maps]
        self._latest = threading.local()  # requests may come side by side

    def part(self, index: int, x: Tensor) -> Tensor:
        """The outputs of one map: [..., d_out], a part of a wider tensor."""
        latest = self._latest.__dict__
        if latest.get("x") is not x or latest["parts"][index] is None:
            latest.update(x=x, parts=list(self._all(x).split(self._sizes, -1)))
        y: Tensor = latest["parts"][index]
        latest["parts"][index] = None
        if not any(part is not None for part in latest["parts"]):
            latest.clear()
        return y


class Int8Part(Int8Linear):
    """One of several int8 maps that are computed together.

    Args:
        one: The map by itself.
        together: Computes it with the others.
        index: Which it is.
    """

    def __init__(self, one: Int8Linear, together: Together, index: int) -> None:
        nn.Module.__init__(self)
        self.training = False
        self.__dict__.update({name: value for name, value in one.__dict__.items() if name[0] != "_"})
        self._packed, self._reduce_range = one._packed, one._reduce_range
        self._transposed, self._biased = one._transposed, one._biased
        self._together, self._index = together, index

    def forward(self, x: Tensor) -> Tensor:
        """Compute [..., d_in] to [..., d_out], in the dtype of `x`; not differentiable."""
        self._refuse_training()
        return self._together.part(self._index, x)


def _restored(weight: Tensor, bias: Tensor | None, transposed: bool) -> Int8Linear:
    made = Int8Linear(weight.T if transposed else weight, bias)
    made._transposed = transposed
    return made


def int8_trunk(trunk_in: Tensor | None, trunk_out: Tensor | None) -> nn.Module | None:
    """A trunk as int8 maps, [..., d_in] to [..., d_out]; None without a trunk.

    Args:
        trunk_in: [rank, d_in]
        trunk_out: [rank, d_out]
    """
    if trunk_in is None or trunk_out is None:
        return None
    return nn.Sequential(Int8Linear(trunk_in), Int8Linear(trunk_out.T))


def best_engine() -> str:
    """The engine of torch whose int8 products are the fastest here.

    oneDNN's use the processor's int8 instructions (VNNI, AMX); where there are none its sums could overflow,
    and FBGEMM, which knows how to avoid that, is as fast.
    """
    engines = torch.backends.quantized.supported_engines
    if "onednn" in engines and _is_vnni_supported():
        return "onednn"
    return next((name for name in ("x86", "fbgemm", "qnnpack") if name in engines), "none")


_ENGINE = threading.Lock()


@contextmanager
def quantized_engine(name: str) -> Iterator[None]:
    """Have torch pack weights for an engine in the body; one thread at a time, for the setting is global."""
    with _ENGINE:
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = name
        try:
            yield
        finally:
            torch.backends.quantized.engine = before
