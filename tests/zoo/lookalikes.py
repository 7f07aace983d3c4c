"""Layers that hold linears, activations and residual additions, and yet no block that can be replaced."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks import MLP, Attention, D, FunctionalLayer, H


class SqueezeExcite(nn.Module):
    """The two linears make a factor for each channel, not a summand."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.gate = Attention(), MLP(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(x)
        return x + y * torch.sigmoid(self.gate(y.mean(1, keepdim=True)))


class GatedAttention(nn.Module):
    """A gated attention unit: the second factor of the product went through attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qk, self.gate, self.value = nn.Linear(D, 2 * D), nn.Linear(D, H), nn.Linear(D, H)
        self.out = nn.Linear(H, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.qk(x).chunk(2, -1)
        mixed = F.softmax(q @ k.transpose(1, 2) / D**0.5, -1) @ F.silu(self.value(x))
        return x + self.out(F.silu(self.gate(x)) * mixed)


class Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.adapter = Attention(), MLP(nn.ReLU(), width=8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.adapter(x)


class LinearPair(FunctionalLayer):
    """Two linears with nothing but a constant between."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(0.5 * self.fc1(self.norm2(x)) + 1)


class TimeEmbedding(FunctionalLayer):
    """The two linears read the time step, which the stream does not hold."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None] * torch.arange(1, D // 2 + 1)
        embedding = torch.cat([angles.sin(), angles.cos()], -1)
        x = x + self.fc2(F.silu(self.fc1(embedding)))[:, None]
        return x + self.attention(self.norm1(x))


class Memory(FunctionalLayer):
    """The two linears read another sequence than the one that their output is added to."""

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.fc2(F.gelu(self.fc1(memory)))
        return x + self.attention(self.norm1(x))


class ThreeLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU(), nn.Linear(H, D))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class Projector(nn.Module):
    """Two modalities: one is projected to the width of the other, and both follow each other."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.attention, self.out = MLP(nn.GELU()), Attention(), nn.Linear(D, 28)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        x = torch.cat([self.project(image), x], dim=1)
        return self.out(F.gelu(x + self.attention(x)))


class Classifier(nn.Module):
    """A pooler, an MLM transform, and a head with as many classes as features."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.pooler, self.head = Attention(), nn.Linear(D, D), MLP(nn.Tanh())
        self.transform, self.norm, self.decoder = nn.Linear(D, D), nn.LayerNorm(D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.attention(x)
        words = self.decoder(self.norm(F.gelu(self.transform(x))))
        return words, self.head(torch.tanh(self.pooler(x[:, 0])))


class SparsityLoss(FunctionalLayer):
    """The hidden activations leave the layer for a penalty."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.attention(self.norm1(x))
        hidden = F.relu(self.fc1(self.norm2(x)))
        return x + self.fc2(hidden), hidden.mean()


class Experts(nn.Module):
    """A router sends each token to two of four modules."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(D, 4)
        self.experts = nn.ModuleList(MLP(nn.SiLU()) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, D)
        weights, chosen = F.softmax(self.router(tokens), -1).topk(2)
        y = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, slots = torch.where(chosen == number)
            y.index_add_(0, rows, expert(tokens[rows]) * weights[rows, slots, None])
        return y.view_as(x)


class LoRALinear(nn.Module):
    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(d_in, d_out), nn.Linear(d_in, 3), nn.Linear(3, d_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


class LoRA(FunctionalLayer):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = LoRALinear(D, H), LoRALinear(H, D)


class FusedAttention(nn.Module):
    """PaLM: one projection in and one out for attention and feedforward together."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fused, self.out = nn.LayerNorm(D), nn.Linear(D, 3 * D + H), nn.Linear(D + H, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, hidden = self.fused(self.norm(x)).split([D, D, D, H], -1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(torch.cat([mixed, F.gelu(hidden)], -1))


class MixFFN(FunctionalLayer):
    """A depthwise convolution over the tokens between the two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(H, H, 3, padding=1, groups=H)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        hidden = self.conv(self.fc1(self.norm2(x)).transpose(1, 2)).transpose(1, 2)
        return x + self.fc2(F.gelu(hidden))


class GroupedConvolutions(nn.Module):
    """Channel first, and each group of channels sees only itself."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.up = nn.Conv1d(D, D, 3, padding=1), nn.Conv1d(D, H, 1, groups=4)
        self.down = nn.Conv1d(H, D, 1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x)
        return x + self.down(F.gelu(self.up(x)))


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.transform, self.gate = Attention(), nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        gate = torch.sigmoid(self.gate(x))
        return gate * F.relu(self.transform(x)) + (1 - gate) * x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(D, H, batch_first=True), nn.Linear(H, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.gelu(self.rnn(x)[0]))


class TokenSelf(FunctionalLayer):
    """The hidden values are normalised over the tokens: no function of one token alone."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.relu(self.fc1(self.norm2(x))).softmax(dim=1))
