from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo.reference import integers, loop, masked_dense

from fffconvert.errors import FFFError
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer

OP = torch.ops.fffconvert.cmm.default
SPECS = {
    "paper": FFFSpec(5, 4, 3),
    "many shallow trees": FFFSpec(5, 4, 0, trees=9),
    "trunk": FFFSpec(5, 4, 2, trees=2, trunk=3),
    "branch": FFFSpec(5, 4, 2, trees=2, branch_outputs=True),
    "leaf": FFFSpec(5, 4, 2, leaf_width=3),
    "everything": FFFSpec(5, 4, 1, trees=2, trunk=2, branch_outputs=True, leaf_width=2, leaf_gated=True),
    "sparse": FFFSpec(5, 4, 1, leaf_width=4, leaf_sparsity=0.5, leaf_gated=True),
}
specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def exact_layer(spec: FFFSpec, seed: int = 0) -> FFFLayer:
    layer = FFFLayer(spec)
    draw = integers(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(draw(name.removeprefix("fff_"), tuple(parameter.shape)))
    return layer


def expected(layer: FFFLayer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return loop(x, {name.removeprefix("fff_"): p for name, p in layer.named_parameters()}, F.relu)


def published(depth: int, trees: int, d: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    neurons = trees * (2 ** (depth + 1) - 1)
    shapes = {
        "linear_in.weight": (neurons, d),
        "linear_in.bias": (neurons,),
        "linear_out.weight": (d, neurons),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }


@specs
def test_equals_the_per_token_loop(spec):
    layer = exact_layer(replace(spec, activation="relu"))
    x = torch.randint(-2, 3, (11, 5)).float()
    assert torch.equal(layer(x), expected(layer, x)[0].float())


@pytest.mark.parametrize("shape", [(5,), (0, 5), (1, 5), (2, 3, 5), (2, 0, 3, 5)], ids=str)
def test_leading_axes_are_kept(shape):
    layer = exact_layer(FFFSpec(5, 4, 2, trees=2, trunk=2, activation="relu"))
    x = torch.randint(-2, 3, shape).float()
    assert torch.equal(layer(x), expected(layer, x.reshape(-1, 5))[0].float().view(*shape[:-1], 4))


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 3), (2, 5, 3, 2)], ids=str)
def test_features_may_be_on_axis_1(shape):
    layer = exact_layer(FFFSpec(5, 4, 2, trunk=2, activation="relu", feature_axis=1))
    x = torch.randint(-2, 3, shape).float()
    y = layer(x)
    assert y.shape == (2, 4, *shape[2:])
    rows = expected(layer, x.movedim(1, -1).reshape(-1, 5))[0].float()
    assert torch.equal(y.movedim(1, -1).reshape(-1, 4), rows)


def test_input_of_another_width_is_refused():
    with pytest.raises(RuntimeError, match=r"x is \[2, 10\]; expected \[tokens, 5\]"):
        FFFLayer(FFFSpec(5, 4, 2))(torch.zeros(2, 10))


@specs
def test_parameters_are_those_of_the_specification(spec):
    layer = FFFLayer(spec)
    trees, nodes, leaves = spec.trees, 2 ** (spec.depth + 1) - 1, 2 ** (spec.depth + 1)
    shapes = {
        "fff_in_weight": [trees, nodes, 5],
        "fff_in_bias": [trees, nodes],
        "fff_out_weight": [trees, 2 * nodes if spec.branch_outputs else nodes, 4],
        "fff_bias": [4],
    }
    if spec.branch_outputs:
        shapes["fff_leaf_constant"] = [trees, leaves, 4]
    if spec.leaf_width:
        shapes["fff_leaf_in_weight"] = [trees, leaves, spec.leaf_width, 5]
        shapes["fff_leaf_in_bias"] = [trees, leaves, spec.leaf_width]
        shapes["fff_leaf_out_weight"] = [trees, leaves, spec.leaf_width, 4]
    if spec.leaf_gated:
        shapes["fff_leaf_gate_weight"] = [trees, leaves, spec.leaf_width, 5]
        shapes["fff_leaf_gate_bias"] = [trees, leaves, spec.leaf_width]
    if spec.leaf_sparsity:
        shapes["fff_leaf_threshold"] = [trees, leaves, spec.leaf_width]
    if spec.trunk:
        shapes["fff_trunk_in"] = [spec.trunk, 5]
        shapes["fff_trunk_out"] = [spec.trunk, 4]
    assert {name: list(p.shape) for name, p in layer.state_dict().items()} == shapes
    assert sum(p.numel() for p in layer.parameters()) == spec.parameters
    assert not list(layer.buffers())
    absent = {"fff_leaf_constant", "fff_leaf_in_weight", "fff_leaf_gate_bias", "fff_trunk_in"} - set(shapes)
    assert all(getattr(layer, name) is None for name in absent)


@specs
def test_every_parameter_and_the_input_have_the_right_gradient(spec):
    torch.manual_seed(1)
    layer = FFFLayer(spec, dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]
    _, logits, _ = expected(layer, x)
    assert logits.abs().min() > 1e-3

    def output(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(output, (x, *layer.parameters()))


def test_a_new_layer_keeps_the_scale_of_its_input():
    torch.manual_seed(0)
    spec = FFFSpec(64, 64, 4, trees=8, trunk=8, branch_outputs=True, leaf_width=4, activation="relu")
    layer = FFFLayer(spec)
    for parameter, bound in (
        (layer.fff_in_weight, 64**-0.5),
        (layer.fff_out_weight, spec.active_width**-0.5),
    ):
        assert 0.98 * bound < parameter.abs().max() <= bound
    assert not layer.fff_bias.any()
    assert not layer.fff_leaf_constant.any()
    assert 0.05 < layer(torch.randn(500, 64)).std() < 1


def test_training_reduces_the_error():
    torch.manual_seed(0)
    layer = FFFLayer(FFFSpec(8, 8, 3, trees=2, trunk=2, branch_outputs=True, leaf_width=2, leaf_gated=True))
    x = torch.randn(128, 8)
    target = torch.tanh(x.roll(1, 1) * x)
    optimizer = torch.optim.Adam(layer.parameters(), 2e-2)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(layer(x), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype):
    layer = FFFLayer(FFFSpec(5, 4, 2, trunk=2, branch_outputs=True, leaf_width=2), dtype=dtype)
    x = torch.randn(7, 5, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    truth = copy.deepcopy(layer).double()(x.double())
    torch.testing.assert_close(
        y.double(), truth, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_trains_under_autocast(x_dtype):
    layer = FFFLayer(FFFSpec(5, 4, 2, trunk=2, leaf_width=2))
    x = torch.randn(7, 5).to(x_dtype)
    truth = layer(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == x_dtype
    torch.testing.assert_close(y.float(), truth, rtol=0.02, atol=0.02)
    y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in layer.parameters())


def test_meta_construction_allocates_nothing():
    spec = FFFSpec(4096, 4096, 15, trees=64, trunk=64, branch_outputs=True, leaf_width=64, leaf_gated=True)
    layer = FFFLayer(spec, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in layer.parameters())
    y = layer(torch.empty(2, 3, 4096, device="meta", dtype=torch.bfloat16))
    assert (y.shape, y.dtype) == ((2, 3, 4096), torch.bfloat16)
    with torch.device("meta"):
        assert FFFLayer(spec).fff_in_weight.is_meta


def test_deepcopy_and_state_dict_carry_everything():
    spec = SPECS["everything"]
    layer, x = FFFLayer(spec), torch.randn(6, 5)
    clone, other = copy.deepcopy(layer), FFFLayer(spec)
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    before = layer(x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert not layer(x).any()
    assert torch.equal(clone(x), before)
    assert torch.equal(other(x), before)


def test_repr_shows_what_differs_from_the_defaults():
    layer = FFFLayer(FFFSpec(5, 4, 2, trees=3, leaf_width=2, activation="silu"))
    assert repr(layer) == "FFFLayer(d_in=5, d_out=4, depth=2, trees=3, leaf_width=2, activation='silu')"


@specs
def test_compiles_whole(spec):
    layer = FFFLayer(spec)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (3, 6):
        x = torch.randn(batch, 7, 5)
        grads = []
        for run in (layer, compiled):
            y = run(x)
            torch.testing.assert_close(y, layer(x))
            grads.append(torch.autograd.grad(y.square().sum(), list(layer.parameters())))
        torch.testing.assert_close(*grads)


@specs
def test_exports_as_one_node_with_a_dynamic_batch(spec):
    layer = FFFLayer(spec)
    program = torch.export.export(
        layer, (torch.randn(3, 7, 5),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(OP) == 1
    x = torch.randn(6, 7, 5)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize(("trees", "depth"), [(1, 0), (9, 0), (1, 4), (3, 3)])
def test_published_layer_gives_its_outputs(trees, depth):
    state = published(depth, trees, 6)
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y, margin = masked_dense(x, *state.values(), depth)
    assert margin.min() > 1e-6
    layer = FFFLayer.from_published(state, depth=depth)
    assert layer.spec == FFFSpec(6, 6, depth, trees=trees, activation="gelu")
    torch.testing.assert_close(layer(x), y, rtol=1e-12, atol=1e-12)


def test_published_state_dict_of_modules_is_copied():
    modules = nn.ModuleDict({"linear_in": nn.Linear(4, 14), "linear_out": nn.Linear(14, 4, bias=False)})
    layer = FFFLayer.from_published(modules.bfloat16().state_dict(), depth=2)
    assert layer.fff_in_weight.dtype == torch.bfloat16
    kept = layer.fff_out_weight.clone()
    modules["linear_out"].weight.data.zero_()
    assert torch.equal(layer.fff_out_weight, kept)
    assert kept.any()


@pytest.mark.parametrize(
    ("change", "depth", "message"),
    [
        ({"linear_in.bias": None}, 2, r"no linear_in\.bias"),
        ({"linear_in.bias": torch.zeros(13)}, 2, r"linear_in\.bias \[13\]"),
        ({"linear_out.weight": torch.zeros(14, 4)}, 2, r"linear_out\.weight \[14, 4\]"),
        ({"linear_in.weight": torch.zeros(14)}, 2, r"linear_in\.weight \[14\]"),
        ({}, 3, "found 14 neurons; expected a multiple of 15 at depth 3"),
        ({}, -1, "depth is -1"),
    ],
    ids=["missing", "bias", "transposed", "rank", "wrong depth", "negative depth"],
)
def test_other_state_dicts_are_refused(change, depth, message):
    state = published(2, 2, 4) | change
    with pytest.raises(FFFError, match=message):
        FFFLayer.from_published(
            {key: value for key, value in state.items() if value is not None}, depth=depth
        )
