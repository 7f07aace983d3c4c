from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

import fffconvert as fff
from fffconvert import hub, native, surgery
from fffconvert.cli import app
from fffconvert.deployment import files as export_module
from fffconvert.deployment import onnx as onnx_module
from fffconvert.deployment.aot import export_aot
from fffconvert.deployment.onnx import export_onnx
from fffconvert.errors import FFFError
from fffconvert.location import locate
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
built = pytest.mark.skipif(native.library_path() is None, reason="the native library was not built")


def session(path, *, operator: bool):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    if operator:
        fff.register_onnxruntime(options)
    return onnxruntime.InferenceSession(str(path), options)


def batch(vocabulary: int = 90) -> dict[str, torch.Tensor]:
    """Of another size than what is exported with, and padded."""
    mask = torch.ones(3, 21, dtype=torch.int64)
    mask[0, 9:] = 0
    return {"input_ids": torch.randint(0, vocabulary, (3, 21)), "attention_mask": mask}


def arrays(inputs):
    return {name: tensor.numpy() for name, tensor in inputs.items()}


@built
def test_a_model_in_memory_is_written_as_its_folder_is_and_stays_as_it_was(small, tmp_path):
    model = hub.load(str(small)).model
    before = [placed.layer.inference for placed in surgery.layers_of(model).values()]
    paths = (fff.export(given, tmp_path / f"{n}.onnx") for n, given in enumerate((model, small)))
    held, stored = (onnx.load(path).graph for path in paths)
    assert [node.op_type for node in held.node] == [node.op_type for node in stored.node]
    assert [t.raw_data for t in held.initializer] == [t.raw_data for t in stored.initializer]
    assert [placed.layer.inference for placed in surgery.layers_of(model).values()] == before


@built
@pytest.mark.parametrize("form", ["onnx", "onnx-standard"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_onnxruntime_gives_the_same(small, tmp_path, form, dtype):
    path = fff.export(small, tmp_path / "m.onnx", format=form, dtype=dtype)
    domains = {node.domain for node in onnx.load(path).graph.node}
    assert ("fffconvert" in domains) == (form == "onnx")
    model = fff.deploy(hub.load(str(small)).model, backend="reference", dtype=dtype)
    inputs = batch()
    with torch.no_grad():
        expected = model(**inputs).logits
    (found,) = session(path, operator=form == "onnx").run(None, arrays(inputs))
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(torch.from_numpy(found)[kept], expected[kept], rtol=1e-3, atol=1e-4)


def global_state():
    """What of other libraries an export might change for the whole process."""
    loggers = map(
        logging.getLogger, ("", "torch.onnx", "onnxscript", "onnx_ir", "onnxruntime", "transformers")
    )
    found = [(logger.level, list(logger.handlers)) for logger in loggers]
    return found, torch.get_num_threads(), torch.get_default_dtype(), dict(os.environ)


@built
def test_linear_maps_can_be_int8(small, tmp_path):
    before, drawn = global_state(), torch.get_rng_state()
    path = fff.export(small, tmp_path / "m.onnx", quantize_linear="int8")
    assert global_state() == before
    assert torch.equal(torch.get_rng_state(), drawn)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("CMM") == 2
    assert kinds.count("MatMulInteger") >= 8
    inputs = batch()
    (found,) = session(path, operator=True).run(None, arrays(inputs))
    with torch.no_grad():
        expected = hub.load(str(small)).model(**inputs).logits
    error = (torch.from_numpy(found) - expected).norm() / expected.norm()
    assert 0 < error < 0.2


@pytest.fixture(scope="module")
def with_large_weights(small, tmp_path_factory):
    """An exported file whose weights lie beside it, as those of a large model do."""
    path = tmp_path_factory.mktemp("large") / "m.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_module, "LARGE", 0)
        return fff.export(small, path)


@built
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_an_int8_file_leaves_nothing_in_float32_beside_it(
    small, with_large_weights, tmp_path, monkeypatch, large
):
    """And what an earlier export has left there goes."""

    def write(model, path, *, standard, example_inputs):
        onnx.save(
            onnx.load(with_large_weights), path, save_as_external_data=large, location=f"{path.name}.data"
        )

    shutil.copytree(with_large_weights.parent, tmp_path, dirs_exist_ok=True)
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert set(sizes) == {"m.onnx", "m.onnx.data"}
    monkeypatch.setattr(export_module, "export_onnx", write)  # the exporter takes long, and wrote this before
    path = fff.export(small, tmp_path / "m.onnx", quantize_linear="int8", overwrite=True)
    weights = onnx.load(path, load_external_data=False).graph.initializer
    beside = {entry.value for w in weights for entry in w.external_data if entry.key == "location"}
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", *beside}
    assert bool(beside) is large
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 0.8 * sum(sizes.values())
    (found,) = session(path, operator=True).run(None, arrays(batch()))
    assert found.shape == (3, 21, 90)


@built
def test_large_weights_of_another_file_are_not_overwritten(small, tmp_path):
    (tmp_path / "m.onnx.data").write_bytes(b"precious")
    with pytest.raises(FFFError, match=r"m\.onnx\.data exists; choose another `output`"):
        fff.export(small, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").read_bytes() == b"precious"


@built
@pytest.mark.parametrize(("sparsity", "standard"), [(0.0, False), (0.4, False), (0.4, True)])
def test_causal_models_with_gated_leaves_export_too(tmp_path, sparsity, standard):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    (site,) = locate(model)
    shape = {"leaf_width": 4, "leaf_gated": True, "leaf_sparsity": sparsity}
    layer = FFFLayer(FFFSpec(32, 32, 2, trees=2, branch_outputs=True, activation="silu", **shape))
    if sparsity:
        torch.nn.init.constant_(layer.fff_leaf_threshold, 0.1)
    surgery.replace(model, {site: layer})
    export_onnx(model, tmp_path / "m.onnx", standard=standard)
    inputs = {"input_ids": batch(50)["input_ids"], "attention_mask": torch.ones(3, 21, dtype=torch.int64)}
    (found,) = session(tmp_path / "m.onnx", operator=not standard).run(None, arrays(inputs))
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(**inputs).logits, rtol=1e-3, atol=1e-4)
    assert model.config.use_cache  # as it was


@built
def test_the_operator_says_what_does_not_fit(tmp_path):
    from onnx import TensorProto, helper

    def run(x_width: int, nodes: int, *, out_rows: int = 0, activation: int = 0):
        tensors = {"x": [4, x_width], "bias": [3], "w": [1, nodes, 2], "b": [1, nodes]}
        tensors["v"] = [1, out_rows or nodes, 3]
        infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in tensors.items()]
        node = helper.make_node("CMM", list(tensors), ["y"], domain="fffconvert", activation=activation)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "g", infos, [y])
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("fffconvert", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "g.onnx")
        fed = {name: torch.randn(shape).numpy() for name, shape in tensors.items()}
        return session(tmp_path / "g.onnx", operator=True).run(None, fed)[0]

    assert run(2, 7).shape == (4, 3)
    with pytest.raises(Exception, match=r"CMM: x is \[4, 3\]; expected \[4, 2\]; export the model again"):
        run(3, 7)
    with pytest.raises(Exception, match="in_weight has 6 nodes a tree; expected"):
        run(2, 6)
    with pytest.raises(
        Exception, match=r"initialization: .* out_weight is \[1, 6, 3\]; expected \[1, 7, 3\]"
    ):
        run(2, 7, out_rows=6)
    with pytest.raises(Exception, match="activation 15 is unknown; expected 0 to 14; update fffconvert"):
        run(2, 7, activation=15)


@built
def test_mutated_files_are_refused_or_computed_right():
    tool = Path(__file__).parents[1] / "runtime" / "fuzz_operator.py"
    command = [sys.executable, str(tool), "--count", "200", "--library", str(native.library_path())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = dict(line.split(" ", 1)[::-1] for line in done.stdout.splitlines())
    assert int(outcomes["computed"]) > 20
    assert int(outcomes["refused at load"]) > 50
    assert int(outcomes["refused at run"]) > 0


def test_registering_without_the_library_says_what_to_do(monkeypatch):
    monkeypatch.setattr(native, "library_path", lambda: None)
    with pytest.raises(FFFError, match=r"install a C\+\+ compiler.*`format=onnx-standard`"):
        fff.register_onnxruntime(object())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs torch's compiler")
def test_a_package_compiled_ahead_of_time_gives_the_same(small, tmp_path):
    model = hub.load(str(small)).model
    export_aot(model, tmp_path / "m.pt2")
    inputs = batch()
    package = torch._inductor.aoti_load_package(str(tmp_path / "m.pt2"))
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(package(*inputs.values()), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--format", "tflite", "-o", "m.onnx"],
            "--format is 'tflite'; expected one of onnx, onnx-standard, aot",
        ),
        (["--format", "onnx", "-o", "m.pt2"], "expected a name that ends in .onnx"),
        (["--format", "aot", "-o", "m.pt2", "--quantize-linear", "int8"], "aot knows no int8 linear layers"),
        (["-o", "nowhere/m.onnx"], "its folder does not exist"),
    ],
)
def test_the_command_refuses_what_cannot_be(small, options, message):
    done = CliRunner().invoke(app, ["export", str(small), *options])
    assert done.exit_code == 2
    assert message in done.output


def test_a_model_whose_linear_layers_are_int8_is_refused():
    from fffconvert.runtime.int8_linear import Int8Linear

    with pytest.raises(FFFError, match="in int8 already; export it before it is deployed"):
        export_onnx(torch.nn.Sequential(Int8Linear(torch.randn(2, 2))), "x.onnx", example_inputs={})


@pytest.mark.parametrize("command", ["export", "deploy"])
def test_a_model_that_was_not_converted_is_refused_before_it_is_read(tmp_path, monkeypatch, command):
    import transformers

    from fffconvert import hub

    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.architectures = ["BertModel"]
    config.save_pretrained(tmp_path / "dense")
    monkeypatch.setattr(hub, "load", None)
    output = tmp_path / "m.onnx"
    done = CliRunner().invoke(app, [command, str(tmp_path / "dense"), "-o", str(output)])
    assert done.exit_code == 2
    assert "holds no FFF layer; convert it first" in done.output
    assert not output.exists()


def test_a_hub_id_cannot_be_deployed_to_a_folder_and_nothing_is_loaded(tmp_path, monkeypatch):
    from fffconvert import hub

    monkeypatch.setattr(hub, "load", None)
    done = CliRunner().invoke(app, ["deploy", "someone/model", "-o", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "someone/model is no local folder; download it first" in done.output
