"""Feedforward blocks and layers in odd styles, each [batch, tokens, 24] to the same shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

D, H = 24, 40


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, D // 2)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A pre-norm layer: attention, then the block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.attention, self.block = Attention(), block
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.block(self.norm2(x))


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class MLP(nn.Module):
    """Linear, activation (a module or a function), linear."""

    def __init__(self, activation: Callable[[Tensor], Tensor], width: int = H) -> None:
        super().__init__()
        self.up, self.activation, self.down = nn.Linear(D, width), activation, nn.Linear(width, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class RawParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.empty(H, D)), nn.Parameter(torch.zeros(H))
        self.w2, self.b2 = nn.Parameter(torch.empty(H, D)), nn.Parameter(torch.zeros(D))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(F.linear(x, self.w1, self.b1)) @ self.w2 + self.b2


class SeparateBias(RawParameters):
    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.matmul(x, self.w1.t())
        hidden = F.gelu(hidden.add(self.b1), approximate="tanh")
        return torch.matmul(hidden, self.w2) + self.b2


class Addmm(RawParameters):
    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.addmm(self.b1, x.reshape(-1, D), self.w1.t())
        return torch.addmm(self.b2, F.silu(hidden), self.w2).view(x.shape)


class Einsum(RawParameters):
    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(torch.einsum("btd,hd->bth", x, self.w1) + self.b1)
        return torch.einsum("bth,hd->btd", hidden, self.w2) + self.b2


class EinsumGated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Parameter(torch.empty(D, H)), nn.Parameter(torch.empty(D, H))
        self.down = nn.Parameter(torch.empty(H, D))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(torch.einsum("...d,dh->...h", x, self.gate)) * torch.einsum(
            "...d,dh->...h", x, self.up
        )
        return torch.einsum("...h,hd->...d", hidden, self.down)


class ParametersInLayer(RawParameters):
    """The layer's own forward multiplies by its own parameters: no module is the block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(D), Attention()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + F.linear(torch.relu(F.linear(x, self.w1, self.b1)), self.w2.t(), self.b2)


class FunctionalLayer(nn.Module):
    """Linears in the layer, everything between them functional, the norms after the additions."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.fc1, self.fc2 = Attention(), nn.Linear(D, H), nn.Linear(H, D)
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        hidden = F.dropout(F.silu(self.fc1(x)), p=0.0, training=self.training)
        return self.norm2(x + F.dropout(self.fc2(hidden), p=0.0, training=self.training))


class InPlaceLayer(FunctionalLayer):
    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(self.norm1(x))
        y += x
        hidden = self.fc1(self.norm2(y))
        hidden.relu_()
        z = self.fc2(hidden)
        z += y
        return z


class GatedLayer(FunctionalLayer):
    """A gate in the layer, and a learned scale on the block's output."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.scale = nn.Linear(D, H, bias=False), nn.Parameter(torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        normed = self.norm2(x)
        return x + self.scale * self.fc2(self.fc1(normed) * F.gelu(self.gate(normed)))


class ParallelLayer(FunctionalLayer):
    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        return x + self.attention(normed) + self.fc2(F.gelu(self.fc1(normed)))


class ScaledResidualLayer(FunctionalLayer):
    """DeepNorm: the stream is scaled before the block's output is added."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(1.7 * x + self.attention(x))
        return self.norm2(torch.add(self.fc2(F.relu(self.fc1(x))), x, alpha=1.7))


class PatchTokensLayer(FunctionalLayer):
    """The block sees all tokens but the first."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        first, rest = x[:, :1], x[:, 1:]
        return torch.cat([first, rest + self.fc2(F.mish(self.fc1(rest)))], dim=1)


class ControlFlowLayer(Layer):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        if x.sum().item() > 0:
            return x + self.block(self.norm2(x))
        for _ in range(2 if x.amax() > 1e6 else 1):
            x = x + 0.5 * self.block(self.norm2(x))
        return x


class CheckpointedLayer(Layer):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + checkpoint(self.block, self.norm2(x), use_reentrant=False)


class ConformerLayer(nn.Module):
    """Half a block, attention, a gated depthwise convolution, half a block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = MLP(nn.SiLU()), MLP(nn.SiLU(), width=56)
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(4))
        self.attention, self.wide, self.narrow = Attention(), nn.Conv1d(D, 2 * D, 1), nn.Conv1d(D, D, 1)
        self.depthwise = nn.Conv1d(D, D, 3, padding=1, groups=D)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.first(self.norms[0](x))
        x = x + self.attention(self.norms[1](x))
        mixed = self.depthwise(F.glu(self.wide(self.norms[2](x).transpose(1, 2)), dim=1))
        x = x + self.narrow(F.silu(mixed)).transpose(1, 2)
        return x + 0.5 * self.second(self.norms[3](x))


class Fused(nn.Module):
    """One projection of twice the width; `halves` takes it apart, and the activation is SiLU."""

    def __init__(self, halves: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.up, self.down, self.halves = nn.Linear(D, 2 * H), nn.Linear(H, D), halves

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.halves(self.up(x))
        return self.down(F.silu(gate) * value)


class GLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, 2 * H), nn.Linear(H, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.glu(self.up(x)))


class Conv2dLayer(nn.Module):
    """Channel first, [batch, 24, height, width], with 1x1 convolutions and a 3x3 depthwise mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Conv2d(D, D, 3, padding=1, groups=D), nn.GroupNorm(1, D)
        self.block = nn.Sequential(nn.Conv2d(D, H, 1), nn.GELU(), nn.Dropout(0.0), nn.Conv2d(H, D, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(self.norm(self.mix(x) + x))


class Conv1dLayer(nn.Module):
    """Tokens last, [batch, 24, tokens], the convolutions in the layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up, self.down = Attention(), nn.Conv1d(D, H, 1), nn.Conv1d(H, D, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x.transpose(1, 2)).transpose(1, 2)
        return x + self.down(F.relu(self.up(x)))


class SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0).square()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x.clamp(min=0) * grad


def shifted_swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x + 1)
