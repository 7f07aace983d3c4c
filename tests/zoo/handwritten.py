"""Hand-written models in odd styles with known answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers.utils import ModelOutput

from zoo import blocks as b
from zoo import lookalikes as no
from zoo.blocks import MLP, D, H, Layer, Stack
from zoo.case import Case, Expected, Inputs, enliven, fused, gated, integers, normal, plain


class NanoGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(61, D), nn.Embedding(32, D)
        self.stack = Stack(Layer(MLP(nn.GELU(approximate="tanh"))), Layer(MLP(nn.GELU(approximate="tanh"))))
        self.lm_head = nn.Linear(D, 61, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.stack(self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device)))
        logits = self.lm_head(x)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class ListOfLinears(nn.Module):
    """No layer modules: the model's forward indexes lists, and one activation serves all and the head."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(b.Attention() for _ in range(2))
        self.ups = nn.ModuleList(nn.Linear(D, H) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(H, D, bias=False) for _ in range(2))
        self.act, self.head = nn.GELU(), nn.Linear(D, D)

    def forward(self, x: Tensor) -> ModelOutput:
        for attention, up, down in zip(self.attentions, self.ups, self.downs, strict=True):
            x = x + attention(x)
            x = x + down(self.act(up(x)))
        return ModelOutput(logits=self.act(self.head(x)))


class Collect(nn.Module):
    """Layers that return a loss beside the stream."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> dict[str, Any]:
        losses = []
        for layer in self.layers:
            x, loss = layer(x)
            losses.append(loss)
        return {"last_hidden_state": x, "loss": torch.stack(losses).sum()}


def weight_normed() -> MLP:
    mlp = MLP(nn.SiLU())
    mlp.up, mlp.down = weight_norm(mlp.up), weight_norm(mlp.down)
    return mlp


class MidNorm(MLP):
    """Normalises what the activation gives: no function of one neuron alone."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__(activation)
        self.norm = nn.LayerNorm(H)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.activation(self.up(x))))


def shared(pattern: str) -> Stack:
    """Layers that share their blocks as the letters say."""
    mlps = {letter: MLP(nn.GELU()) for letter in sorted(set(pattern))}
    return Stack(*(Layer(mlps[letter]) for letter in pattern))


def shared_up() -> Stack:
    """Two layers with one up-projection and a down-projection each."""
    first, second = b.FunctionalLayer(), b.FunctionalLayer()
    second.fc1 = first.fc1
    return Stack(first, second)


def two(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Stack(layer(), layer())


def block(
    make: Callable[[], nn.Module], layer: Callable[[nn.Module], nn.Module] = Layer
) -> Callable[[], nn.Module]:
    return two(lambda: layer(make()))


def sequence() -> Inputs:
    return {"x": normal(2, 7, D)}


def source() -> Inputs:
    return {"src": normal(2, 7, D)}


def tokens_last() -> Inputs:
    return {"input": normal(2, D, 7)}


def grid() -> Inputs:
    return {"input": normal(2, D, 5, 3)}


def two_sequences(first: str, second: str, length: int = 5) -> Callable[[], Inputs]:
    return lambda: {first: normal(2, 7, D), second: normal(2, length, D, seed=2)}


def case(
    name: str,
    make: Callable[[], nn.Module],
    *expected: Expected,
    inputs: Callable[[], Inputs] = sequence,
    refused: Iterable[tuple[str, str]] = (),
) -> Case:
    def build() -> nn.Module:
        torch.manual_seed(0)
        model = make().eval()
        enliven(model)
        return model

    return Case(name, build, inputs, expected, tuple(refused))


def torch_layers(kind: str, **options: Any) -> Callable[[], nn.Module]:
    layer, stack = getattr(nn, f"Transformer{kind}Layer"), getattr(nn, f"Transformer{kind}")
    nested = {"enable_nested_tensor": False} if options.get("norm_first") else {}
    return lambda: stack(layer(D, 2, H, dropout=0.0, batch_first=True, **options), 2, **nested)


RELU, GELU, SILU = (plain(2, D, H, name) for name in ("relu", "gelu", "silu"))
FUSED = fused(2, D, H, "silu")
CUSTOM = plain(2, D, H, "custom")

BLOCKS: list[Case] = [
    case("torch-encoder-relu", torch_layers("Encoder"), RELU, inputs=source),
    case(
        "torch-encoder-gelu-norm-first",
        torch_layers("Encoder", activation="gelu", norm_first=True, bias=False),
        GELU,
        inputs=source,
    ),
    case(
        "torch-decoder",
        torch_layers("Decoder"),
        RELU,
        inputs=two_sequences("tgt", "memory"),
    ),
    case("nanogpt", NanoGPT, plain(2, D, H, "gelu_tanh"), inputs=lambda: {"idx": integers(2, 7)}),
    case("list-of-linears", ListOfLinears, GELU),
    case(
        "sequential",
        block(lambda: nn.Sequential(nn.Linear(D, H), nn.ELU(), nn.Linear(H, D))),
        plain(2, D, H, "elu"),
    ),
    case("raw-parameters", block(b.RawParameters), RELU),
    case("separate-bias", block(b.SeparateBias), plain(2, D, H, "gelu_tanh")),
    case("addmm", block(b.Addmm), SILU),
    case("einsum", block(b.Einsum), GELU),
    case("einsum-gated", block(b.EinsumGated), gated(2, D, H, "silu")),
    case("functional-layer", two(b.FunctionalLayer), SILU),
    case("in-place", two(b.InPlaceLayer), RELU),
    case("gated-layer-scaled", two(b.GatedLayer), gated(2, D, H, "gelu")),
    case("parallel", two(b.ParallelLayer), GELU),
    case("scaled-residual", two(b.ScaledResidualLayer), RELU),
    case("some-tokens", two(b.PatchTokensLayer), plain(2, D, H, "mish")),
    case("control-flow", block(lambda: MLP(nn.GELU()), b.ControlFlowLayer), GELU),
    case("checkpointed", block(lambda: MLP(nn.SiLU()), b.CheckpointedLayer), SILU),
    case("shared-thrice", lambda: shared("aaa"), plain(1, D, H, "gelu", calls=3)),
    case("shared-alternating", lambda: shared("abab"), plain(2, D, H, "gelu", calls=2)),
    case("macaron", two(b.ConformerLayer), SILU, plain(2, D, 56, "silu")),
    case("weight-norm", block(weight_normed), SILU),
    case("conv1x1-2d", lambda: nn.Sequential(b.Conv2dLayer(), b.Conv2dLayer()), GELU, inputs=grid),
    case("conv1x1-1d", lambda: nn.Sequential(b.Conv1dLayer(), b.Conv1dLayer()), RELU, inputs=tokens_last),
    case("fused-chunk", block(lambda: b.Fused(lambda h: h.chunk(2, -1))), FUSED),
    case("fused-split-gate-last", block(lambda: b.Fused(lambda h: h.split(H, -1)[::-1])), FUSED),
    case("fused-interleaved", block(lambda: b.Fused(lambda h: (h[..., ::2], h[..., 1::2]))), FUSED),
    case("fused-unflatten", block(lambda: b.Fused(lambda h: h.unflatten(-1, (2, H)).unbind(-2))), FUSED),
    case("glu", block(b.GLU), fused(2, D, H, "sigmoid")),
    case("custom-activation", block(lambda: MLP(b.shifted_swish)), CUSTOM),
    case("autograd-function", block(lambda: MLP(b.SquaredReLU.apply)), plain(2, D, H, "relu2")),
    case("mid-norm", block(lambda: MidNorm(nn.GELU())), CUSTOM),
    case("mid-norm-autograd-function", block(lambda: MidNorm(b.SquaredReLU.apply)), CUSTOM),
    case(
        "double-precision",
        lambda: two(lambda: Layer(MLP(nn.GELU())))().double(),
        GELU,
        inputs=lambda: {"x": normal(2, 7, D).double()},
    ),
]

OUTSIDE = [("layers.0", "parameter"), ("layers.1", "parameter")]

LOOKALIKES: list[Case] = [
    case("parameters-in-layer", two(b.ParametersInLayer), refused=OUTSIDE),
    case("shared-up-projection", shared_up, refused=[("fc1", "shared|more than|other")]),
    case(
        "hidden-for-a-loss",
        lambda: Collect(no.SparsityLoss(), no.SparsityLoss()),
        refused=[("layers.0", "hidden|used|return")],
    ),
    case("experts", block(no.Experts), refused=[("experts", "expert")]),
    case("adapter", two(no.Adapter), refused=[("adapter", "expansion|bottleneck|narrow")]),
    case("three-linears", two(no.ThreeLinears)),
    case("lora", two(no.LoRA), refused=[("fc", "low-rank|merge|LoRA|linear")]),
    case("mix-ffn", two(no.MixFFN), refused=[("fc", "convolution")]),
    case(
        "grouped-convolutions",
        lambda: nn.Sequential(no.GroupedConvolutions()),
        inputs=tokens_last,
        refused=[("", "group")],
    ),
    case("fused-attention", two(no.FusedAttention)),
    case("squeeze-excite", two(no.SqueezeExcite)),
    case("gated-attention", two(no.GatedAttention)),
    case("linear-pair", two(no.LinearPair)),
    case("softmax-over-tokens", two(no.TokenSelf)),
    case(
        "time-embedding", no.TimeEmbedding, inputs=lambda: {"x": normal(2, 7, D), "time": normal(2, seed=2)}
    ),
    case("other-sequence", no.Memory, inputs=two_sequences("x", "memory", 7)),
    case("projector", no.Projector, inputs=two_sequences("x", "image")),
    case("classifier", no.Classifier),
    case("highway", two(no.Highway)),
    case("recurrent", two(no.Recurrent)),
]

HANDWRITTEN: list[Case] = BLOCKS + LOOKALIKES
