from __future__ import annotations

import copy
import importlib
import json
import warnings

import pytest
import torch
import transformers
from torch import nn
from typer.testing import CliRunner

import fffconvert as fff
from fffconvert.cli import app
from fffconvert.errors import FFFError
from fffconvert.fit.diagnostics import skipped_share
from fffconvert.planning import FFFSpec
from fffconvert.runtime import cmm, cpu
from fffconvert.tree import FFFLayer

module = importlib.import_module("fffconvert.deployment.layers")
native = pytest.mark.skipif(cpu.library() is None, reason="the native library was not built")


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = FFFLayer(FFFSpec(16, 16, 4))
        self.b = FFFLayer(FFFSpec(16, 16, 2, trees=2, leaf_width=3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


@pytest.fixture
def times(monkeypatch):
    """Times by what is asked, in place of measured ones."""
    given: dict[object, float] = {}

    def look_up(call, inputs):
        key = "dense" if not isinstance(call, FFFLayer) else (call.inference.backend, call.inference.dtype)
        return tuple(given.get(key, 50.0) for _ in inputs)

    monkeypatch.setattr(module, "times", look_up)
    return given


def test_outputs_hardly_change_and_the_model_is_the_same():
    model, x = Two().eval(), torch.randn(40, 16)
    with torch.no_grad():
        before = model(x)
        assert fff.deploy(model) is model
        torch.testing.assert_close(model(x), before, rtol=0.05, atol=0.05)


@native
def test_the_fastest_backend_is_taken(times):
    model = Two()
    times["auto", None], times["reference", None] = 10.0, 20.0
    assert [d.backend for d in module.deploy_layers(model, dtype="float32")] == ["cpu", "cpu"]
    times["reference", None] = 5.0
    assert [d.backend for d in module.deploy_layers(model, dtype="float32")] == ["reference", "reference"]
    assert model.a.inference.backend == "reference"


@native
def test_auto_takes_smaller_rows_only_where_outputs_hardly_change(times, monkeypatch):
    times["auto", torch.bfloat16] = 1.0
    monkeypatch.setattr(module, "TOLERANCE", 1.0)
    assert {d.dtype for d in module.deploy_layers(Two())} == {"bfloat16"}
    monkeypatch.setattr(module, "TOLERANCE", 0.0)
    assert {d.dtype for d in module.deploy_layers(Two())} == {"float32"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_row_types_are_taken_as_asked(dtype):
    found = module.deploy_layers(Two(), dtype=dtype)
    assert {d.dtype for d in found} == {dtype}
    expected = {"float32": (0, 1e-5), "bfloat16": (1e-4, 0.2), "int8": (1e-4, 0.3)}[dtype]
    for deployment in found:
        assert expected[0] <= deployment.error <= expected[1]


def test_falls_back_to_a_faster_dense_block_and_says_so(times):
    model, block = Two(), nn.Sequential(nn.Linear(16, 4), nn.GELU(), nn.Linear(4, 16))
    times["dense"] = 1.0
    found = module.deploy_layers(model, originals={"a": block})
    assert found[0].backend == "dense"
    assert "slower than the block they replaced, at 1 tokens" in found[0].reason
    assert found[1].backend != "dense"
    x = torch.randn(5, 16)
    with torch.no_grad():
        assert torch.equal(model.a(x), block(x))
    assert model.a(x).requires_grad  # training goes on with the trees
    assert "a.fff_in_weight" in model.state_dict()


def test_insisting_on_a_backend_is_heeded_even_if_slower(times):
    times["dense"] = 1.0
    found = module.deploy_layers(Two(), "reference", originals={"a": nn.Linear(16, 16)})
    assert found[0].backend == "reference"
    assert found[0].reason.endswith("slower than the dense block")


def test_a_model_converted_here_knows_its_original_blocks(times):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 64, dropout=0, batch_first=True)
    model = nn.TransformerEncoder(encoder, 2).eval()
    example = {"src": torch.randn(4, 64, 16)}
    fff.convert(model, depth=2, calibration=[example] * 4, example_inputs=example)
    times["dense"] = 1.0
    assert {d.backend for d in module.deploy_layers(model)} == {"dense"}
    with torch.no_grad():
        deployed = model(example["src"])
        fff.restore(model)
        torch.testing.assert_close(deployed, model(example["src"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "gpu"}, "unknown backend 'gpu'; expected auto, reference, cpu, cupy"),
        ({"backend": "cupy"}, "backend 'cupy' cannot run here: "),
        ({"dtype": "int4"}, "unknown row type 'int4'; expected auto, float32, bfloat16, int8"),
    ],
)
def test_what_cannot_be_had_is_refused_and_nothing_changes(arguments, message):
    model = Two()
    before = model.a.inference
    with pytest.raises(FFFError, match=message):
        fff.deploy(model, **arguments)
    assert model.a.inference is before


@native
def test_insisting_on_what_does_not_compute_the_layers_is_refused_with_the_reason():
    with pytest.raises(
        FFFError, match=r"'cpu' cannot compute the layers: its inputs are .*, not torch.float"
    ):
        fff.deploy(Two().double(), backend="cpu")
    assert {d.backend for d in module.deploy_layers(Two().double())} == {"reference"}


def test_a_deployment_that_gradients_put_out_of_effect_is_said_once():
    said = importlib.import_module("fffconvert.tree.layer")._say_that_a_deployment_has_no_effect
    said.cache_clear()
    model, x = fff.deploy(Two(), backend="reference", dtype="int8").eval(), torch.randn(3, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            rounded = model(x)
        Two().eval()(x)  # nobody counts on a deployment here,
        model.train()(x)  # and training is meant to go on with the trees
    model.eval()
    with pytest.warns(UserWarning, match=r"as before the deployment; call it under torch.no_grad\(\)"):
        plain = model(x)
    assert not torch.equal(plain, rounded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
        copy.deepcopy(model)(x)
    said.cache_clear()
    with pytest.warns(UserWarning, match="gradients are recorded"):
        copy.deepcopy(model)(x)


def test_a_model_without_layers_is_refused():
    with pytest.raises(FFFError, match="holds no FFF layer; convert it first"):
        fff.deploy(nn.Linear(2, 2))


def tiny_bert(**options):
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertModel(config).eval()
    batch = {"input_ids": torch.randint(0, 50, (4, 32))}
    return fff.convert(model, calibration=[batch] * 4, example_inputs=batch, **options), batch


@native
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_whole_model_compiles_and_exports(dtype):
    model, batch = tiny_bert(depth=3, trunk=2)
    fff.deploy(model, backend="cpu", dtype=dtype)
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        compiled = torch.compile(model, fullgraph=True)
        torch.testing.assert_close(compiled(**batch).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
        program = torch.export.export(model, (), batch)
        exported = program.module()(**batch).last_hidden_state
    torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-4)
    assert "fffconvert.cmm_inference" in program.graph_module.print_readable(print_output=False)


def test_the_command_lists_every_layer(tmp_path):
    model, _ = tiny_bert(depth=2)
    model.save_pretrained(tmp_path / "fff")
    done = CliRunner().invoke(app, ["deploy", str(tmp_path / "fff"), "--dtype", "int8", "--json"])
    assert done.exit_code == 0, done.output
    layers = json.loads(done.stdout)["layers"]
    assert [layer["dtype"] for layer in layers] == ["int8", "int8"]
    assert all(layer["dense_microseconds"] is None for layer in layers)


def test_a_sparse_layer_is_timed_on_inputs_that_skip_what_text_does():
    layer = FFFLayer(FFFSpec(16, 16, 1, leaf_width=32, leaf_sparsity=0.4, activation="relu"))
    at_one = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.fff_leaf_in_bias.zero_()
        layer.fff_leaf_threshold.fill_(4.0)  # inputs of size 1 hardly pass it
    _, _, leaf = cmm(at_one, layer.weights, "relu")
    assert skipped_share(layer, at_one, leaf) > 0.9
    x = module._inputs(layer)[-1]
    _, _, leaf = cmm(x, layer.weights, "relu")
    assert skipped_share(layer, x, leaf) < 0.65
