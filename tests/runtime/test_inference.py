"""A layer's inference path: it follows the parameters, and computes the same however it is called."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from zoo.reference import normals

from fffconvert.planning import FFFSpec
from fffconvert.runtime import Inference, cpu, inference, reference
from fffconvert.runtime.int8_linear import int8_trunk
from fffconvert.runtime.rows import ROW_DTYPES
from fffconvert.tree import FFFLayer

pytestmark = pytest.mark.usefixtures("instruction_set")
SPEC = FFFSpec(12, 12, 3, trees=2, trunk=3, branch_outputs=True)
row_types = pytest.mark.parametrize("row_type", [None, *ROW_DTYPES.values()], ids=str)


def draw(spec: FFFSpec = SPEC, row_type: torch.dtype | None = None) -> FFFLayer:
    layer = FFFLayer(spec)
    fill = normals(torch.Generator().manual_seed(0), torch.float32)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(fill(name, tuple(parameter.shape)))
    layer.inference = Inference(dtype=row_type)
    return layer


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_reference(layer: FFFLayer, x: torch.Tensor) -> torch.Tensor:
    other = copy.deepcopy(layer)
    other.inference = Inference("reference", layer.inference.dtype)
    return other(x)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@row_types
@pytest.mark.parametrize("shape", [(12,), (0, 12), (1, 12), (1, 1, 12), (3, 7, 12)], ids=str)
def test_equals_the_reference(shape, row_type):
    layer, x = draw(row_type=row_type), inputs(*shape)
    with torch.no_grad():
        y = layer(x)
    assert y.shape == x.shape
    assert_same(y, by_reference(layer, x))


def test_equals_the_training_form():
    layer, x = draw(), inputs(30, 12)
    with torch.no_grad():
        assert_same(layer(x), layer(x.clone().requires_grad_()))
    assert layer(x).requires_grad


@pytest.mark.skipif(cpu.library() is None, reason="the native library was not built")
def test_the_kernels_run_by_default(monkeypatch):
    layer, x = draw(), inputs(30, 12)
    expected = by_reference(layer, x)
    monkeypatch.setattr(reference, "forward", None)
    with torch.no_grad():
        assert_same(layer(x), expected)


@row_types
def test_follows_its_parameters(row_type):
    layer, x = draw(row_type=row_type), inputs(9, 12)
    changes = {
        "in place": lambda: layer.fff_in_weight.mul_(-1),
        "new data": lambda: setattr(layer.fff_out_weight, "data", layer.fff_out_weight.data * 3),
        "new parameter": lambda: setattr(layer, "fff_in_bias", nn.Parameter(torch.ones(2, 15))),
        "bias": lambda: layer.fff_bias.add_(1),
        "loaded": lambda: layer.load_state_dict(FFFLayer(SPEC).state_dict()),
        "double": lambda: layer.double(),
        "float": lambda: layer.float(),
    }
    with torch.no_grad():
        before = layer(x)
        for name, change in changes.items():
            change()
            given = x.to(layer.fff_bias.dtype)
            after = layer(given)
            assert_same(after, by_reference(layer, given))
            assert name in ("double", "float") or not torch.allclose(before, after), name
            before = after.float()


@pytest.mark.parametrize("row_type", [torch.int8, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "switch",
    [
        lambda layer: layer.eval(),
        lambda layer: layer.train(),
        lambda layer: layer.to("cpu"),
        lambda layer: layer.load_state_dict(layer.state_dict()),
        lambda layer: setattr(layer, "inference", Inference(dtype=layer.inference.dtype)),
    ],
    ids=["eval", "train", "to", "load_state_dict", "deploy"],
)
def test_what_torch_does_not_count_as_a_change_is_seen_at_the_next_switch(row_type, switch):
    layer, x = draw(row_type=row_type).eval(), inputs(9, 12)
    with torch.no_grad():
        before = layer(x)
        for parameter in layer.parameters():
            parameter.data.mul_(2)
        switch(layer)
        assert_same(layer(x), by_reference(layer, x))
        assert not torch.allclose(layer(x), before)


def test_an_int8_trunk_follows_the_parameters():
    layer, x = draw(FFFSpec(12, 12, 1, trunk=6)), inputs(9, 12)
    with torch.no_grad():
        layer.inference.trunk = int8_trunk(layer.fff_trunk_in, layer.fff_trunk_out)
        layer(x)
        layer.fff_trunk_out.mul_(-3)
        assert (layer(x) - by_reference(layer, x)).abs().max() < 0.05 * layer(x).abs().max()


def test_a_bias_that_was_copied_is_followed_too():
    layer, x = draw().bfloat16(), inputs(9, 12).bfloat16()
    with torch.no_grad():
        layer(x)
        layer.fff_bias.add_(64)
        assert (layer(x) - by_reference(layer, x)).abs().max() <= 1


def test_copies_are_independent():
    layer, x = draw(row_type=torch.int8), inputs(9, 12)
    with torch.no_grad():
        expected = layer(x)
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert copied.inference.dtype == torch.int8
            assert torch.equal(copied(x), expected)
            copied.fff_bias.add_(1)
            assert_same(copied(x), expected + 1)
        assert torch.equal(layer(x), expected)


@row_types
@pytest.mark.parametrize("backend", ["auto", "reference", "standard"])
def test_first_calls_of_several_threads_give_the_same(backend, row_type):
    layer, x = draw(row_type=row_type), inputs(9, 12)
    layer.inference = Inference(backend, row_type)
    with torch.no_grad():
        expected = copy.deepcopy(layer)(x)
    switch, threads = sys.getswitchinterval(), 8
    barrier = threading.Barrier(threads)

    def call(_):
        results = []
        with torch.no_grad():
            for _ in range(10):
                if barrier.wait() == 0:
                    layer.fff_bias.data = layer.fff_bias.data.clone()  # to be prepared again
                barrier.wait()
                results.append(layer(x))
        return results

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            found = [y for results in pool.map(call, range(threads)) for y in results]
    finally:
        sys.setswitchinterval(switch)
    assert all(torch.equal(y, expected) for y in found)


def test_rows_are_stored_once_for_all_threads(monkeypatch):
    layer, x = draw(row_type=torch.int8), inputs(9, 12)
    usual, calls = inference.store_rows, []

    def slow(*arguments):
        calls.append(1)
        time.sleep(0.05)
        return usual(*arguments)

    monkeypatch.setattr(inference, "store_rows", slow)

    def call(_):
        with torch.no_grad():
            return layer(x)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(call, range(8)))
    assert len(calls) == 1
    assert all(torch.equal(y, found[0]) for y in found)


@pytest.mark.skipif(cpu.library() is None, reason="the native library was not built")
def test_parameters_of_wrong_shapes_reach_no_kernel():
    layer, x = draw(), inputs(9, 12)
    layer.fff_in_bias = nn.Parameter(torch.zeros(2, 3))
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"in_bias is \[2, 3\]; expected \[2, 15\]"):
        layer(x)


def test_nothing_of_it_is_saved():
    assert draw(row_type=torch.int8).state_dict().keys() == FFFLayer(SPEC).state_dict().keys()


@row_types
def test_compiles_whole(row_type):
    layer, x = draw(row_type=row_type), inputs(9, 12)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same(compiled(x), layer(x))


@row_types
def test_exports(row_type):
    layer, x = draw(row_type=row_type), inputs(9, 12)
    tokens = torch.export.Dim("tokens", min=2, max=100)
    with torch.no_grad():
        program = torch.export.export(layer, (x,), dynamic_shapes=({0: tokens},))
        more = inputs(21, 12)
        assert_same(program.module()(more), layer(more))


def test_a_tracer_sees_the_op():
    layer, x = draw(), inputs(9, 12)
    with torch.no_grad():
        traced = make_fx(layer)(x)
    assert torch.ops.fffconvert.cmm_inference.default in {node.target for node in traced.graph.nodes}


def test_meta_and_wrong_widths():
    layer = draw()
    with torch.no_grad():
        assert copy.deepcopy(layer).to("meta")(inputs(2, 12).to("meta")).shape == (2, 12)
        with pytest.raises(RuntimeError, match=r"x is \[2, 24\]; expected \[tokens, 12\]"):
            layer(inputs(2, 24))


def test_inputs_may_have_any_strides():
    layer, x = draw(), inputs(4, 6, 12)
    with torch.no_grad():
        expected = layer(x)
        for same in (x.transpose(0, 1).contiguous().transpose(0, 1), torch.cat([x, x], 2)[..., :12]):
            assert not same.is_contiguous()
            assert torch.equal(layer(same), expected)
            assert torch.equal(layer(same[0]), layer(x[0]))


@row_types
def test_bfloat16_models(row_type):
    layer, x = draw(row_type=row_type).bfloat16(), inputs(50, 12).bfloat16()
    with torch.no_grad():
        y, expected = layer(x), by_reference(layer, x)
    assert y.dtype == torch.bfloat16
    assert ((y - expected).abs() <= 0.05).float().mean() > 0.95  # a logit near 0 may go the other way
