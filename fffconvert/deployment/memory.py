"""What a model's weights take in memory, in the form in which they are computed."""

from __future__ import annotations

from torch import Tensor, nn

from fffconvert.runtime.int8_linear import Int8Linear
from fffconvert.tree import FFFLayer


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters, buffers, int8 maps, and of rows stored in another type; each tensor once."""
    tensors: dict[int, Tensor] = {}
    extra = 0
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            tensors[tensor.data_ptr()] = tensor
        if isinstance(module, Int8Linear):
            extra += module.nbytes
        elif isinstance(module, FFFLayer):
            extra += module.inference.stored_bytes
            trunk = module.inference.trunk
            parts = () if trunk is None else trunk.modules()
            extra += sum(part.nbytes for part in parts if isinstance(part, Int8Linear))
    return extra + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
