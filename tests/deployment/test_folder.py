from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

from fffconvert import hub
from fffconvert.cli import app
from fffconvert.deployment import deploy_folder, linear
from fffconvert.deployment.folder import Deployed
from fffconvert.deployment.memory import weight_bytes
from fffconvert.errors import FFFError
from fffconvert.hub.deployment import Deployment
from fffconvert.options import DeployOptions
from fffconvert.records import plain, read
from fffconvert.runtime.int8_linear import Int8Linear, Int8Part
from fffconvert.tree import FFFLayer

ALL = DeployOptions(dtype="int8", max_drop=1.0)


def deployed(folder: Path, options: DeployOptions, output: Path | None = None) -> Deployed:
    return deploy_folder(str(folder), dataclasses.replace(options, output=output))[1]


@pytest.fixture
def int8_is_fast(monkeypatch):
    """Maps are chosen by timing; here int8 wins."""
    monkeypatch.setattr(linear, "times", lambda call, inputs: (1.0 if any_int8(call) else 2.0,) * len(inputs))


def any_int8(call) -> bool:
    return isinstance(call, torch.nn.Module) and any(isinstance(m, Int8Linear) for m in call.modules())


def outputs(model) -> torch.Tensor:
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_loads_deployed_with_plain_from_pretrained(small, tmp_path, int8_is_fast):
    done = deployed(small, ALL, tmp_path / "deployed")
    assert done.output == tmp_path / "deployed"
    assert {m.dtype for m in done.linears} == {"int8"}
    assert {m.kind for m in done.linears} == {"linear", "trunk"}
    model = transformers.AutoModelForMaskedLM.from_pretrained(done.output)
    names = {name for name, module in model.named_modules() if isinstance(module, Int8Linear)}
    assert "bert.encoder.layer.0.attention.self.query" in names
    assert "cls.predictions.decoder" in names
    attention = model.bert.encoder.layer[0].attention.self
    assert isinstance(attention.query, Int8Part)
    assert attention.query._together is attention.key._together is attention.value._together
    layers = [module for module in model.modules() if isinstance(module, FFFLayer)]
    assert {layer.inference.dtype for layer in layers} == {torch.int8}
    assert all(layer.inference.trunk is not None for layer in layers)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    original = transformers.AutoModelForMaskedLM.from_pretrained(small)
    difference = (outputs(model) - outputs(original)).norm() / outputs(original).norm()
    assert 0 < difference < 0.2
    undeployed = hub.load(str(done.output), deployed=False).model
    assert torch.equal(outputs(undeployed), outputs(original))


def test_bfloat16_rows_take_half_the_memory(small, tmp_path):
    settings = DeployOptions(dtype="bfloat16", quantize_linear="none", max_drop=1.0)
    done = deployed(small, settings, tmp_path / "deployed")
    model = transformers.AutoModelForMaskedLM.from_pretrained(done.output)
    assert weight_bytes(model) == done.bytes_after < done.bytes_before
    layer = next(module for module in model.modules() if isinstance(module, FFFLayer))
    assert layer.fff_in_weight.dtype == layer.fff_leaf_out_weight.dtype == torch.bfloat16
    assert layer.fff_in_bias.dtype == torch.float32
    original = transformers.AutoModelForMaskedLM.from_pretrained(small)
    difference = (outputs(model) - outputs(original)).norm() / outputs(original).norm()
    assert 0 < difference < 0.05
    with torch.enable_grad():  # nobody has to ask for inference mode
        assert torch.equal(model(input_ids=torch.arange(40).view(2, 20)).logits, outputs(model))


def test_another_class_finds_its_maps(small, tmp_path, int8_is_fast):
    folder = deployed(small, ALL, tmp_path / "deployed").output
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no pooler
        model = transformers.AutoModel.from_pretrained(folder)
    assert isinstance(model.encoder.layer[0].attention.self.query, Int8Linear)
    assert {m.inference.dtype for m in model.modules() if isinstance(m, FFFLayer)} == {torch.int8}


def test_a_deployed_model_can_be_saved_again(small, tmp_path, int8_is_fast):
    folder = deployed(small, ALL, tmp_path / "deployed").output
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(outputs(again), outputs(model), rtol=1e-3, atol=1e-3)


def test_the_record_says_what_was_chosen_and_what_it_costs(small, tmp_path, int8_is_fast):
    done = deployed(small, ALL, tmp_path / "deployed")
    record = json.loads((tmp_path / "deployed" / "deploy.json").read_text())
    assert record["agreement"]["measure"] == "same prediction"
    assert record["bytes_after"] == done.bytes_after
    assert record["bytes_before"] > 0
    assert [layer["dtype"] for layer in record["layers"]] == ["int8", "int8"]


def test_a_drop_larger_than_allowed_is_refused_and_nothing_is_written(small, tmp_path, int8_is_fast):
    model = transformers.AutoModelForMaskedLM.from_pretrained(small)
    with torch.no_grad():  # tokens so alike in pairs that rounding decides which of two comes first
        tokens = model.get_input_embeddings().weight
        tokens[1::2] = tokens[::2] + 1e-4 * torch.randn(tokens[::2].shape)
    model.save_pretrained(tmp_path / "pairs")
    with pytest.raises(FFFError, match=r"`max_drop=0` asks for 1\.000\. Try `dtype=float32`"):
        deployed(tmp_path / "pairs", DeployOptions(dtype="int8", max_drop=0.0), tmp_path / "deployed")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def test_exact_deployment_agrees_fully(small):
    done = deployed(small, DeployOptions(dtype="float32", quantize_linear="none", max_drop=0.0))
    assert done.agreement.value == 1.0
    assert done.linears == []


def test_maps_that_are_not_faster_stay(small, monkeypatch):
    monkeypatch.setattr(linear, "times", lambda call, inputs: (1.0,) * len(inputs))
    done = deployed(small, DeployOptions(max_drop=1.0))
    assert {m.dtype for m in done.linears} == {"float32"}


def test_refuses_what_is_deployed_already_or_was_never_converted(small, tmp_path):
    first = deployed(small, ALL, tmp_path / "deployed").output
    with pytest.raises(FFFError, match="is deployed already; deploy the folder that it was made from"):
        deployed(first, ALL, tmp_path / "more")
    transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, hidden_size=12)).save_pretrained(
        tmp_path / "plain"
    )
    with pytest.raises(FFFError, match="holds no FFF layer"):
        deployed(tmp_path / "plain", ALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize_linear": "int4"}, "`quantize_linear` is 'int4'; expected auto or int8 or none"),
        ({"target": "tpu"}, "`target` is 'tpu'; expected cpu or cuda"),
        ({"max_drop": 2.0}, "`max_drop` is 2.0; expected a share from 0 to 1"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(FFFError, match=message):
        DeployOptions(**options)


@pytest.mark.parametrize(
    "change",
    [{"target": "tpu"}, {"rows": None}, {"rows": {"a": "int4"}}, {"int8_linears": 3}, {"attention": "int4"}],
)
def test_a_malformed_deployment_is_refused(change):
    values = plain(Deployment("cpu", {"a": "int8"})) | change
    with pytest.raises(FFFError, match=r"expected .*; convert the model, or deploy it, again"):
        read(Deployment, values, "config", "checkpoint")


def test_the_command_writes_a_folder_and_says_what_it_did(small, tmp_path):
    command = ["deploy", str(small), "-o", str(tmp_path / "deployed"), "--max-drop", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "agree with those before" in done.stdout
    assert "Weights in memory" in done.stdout
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    assert "exists; choose another --output, or add --overwrite" in again.output
    shutil.rmtree(tmp_path / "deployed")
