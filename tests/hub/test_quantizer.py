"""The saved form: read back equal in a new process, by other classes, by nobody without fffconvert."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertForMaskedLM,
    BertModel,
    PreTrainedModel,
    T5EncoderModel,
    Trainer,
    TrainingArguments,
)
from zoo import ARCHITECTURES

from fffconvert import surgery
from fffconvert.errors import FFFError
from fffconvert.hub import mark_converted
from fffconvert.planning import MAX_DEPTH
from fffconvert.tree import FFFLayer

IDS = {"input_ids": torch.arange(20).view(2, 10)}
Convert = Callable[[PreTrainedModel], PreTrainedModel]


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(**IDS)[0]


def edit_plan(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the stored `quantization_config`."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config["quantization_config"])
    path.write_text(json.dumps(config))


def first_layer(plan: dict[str, Any]) -> dict[str, Any]:
    return next(iter(plan["modules"].values()))


def test_nothing_is_missing_or_left_over(converted: Path):
    _, info = BertForMaskedLM.from_pretrained(converted, output_loading_info=True)
    assert not any(info.values()), info


@pytest.mark.parametrize("class_name", ["AutoModelForMaskedLM", "AutoModel"])
def test_transformers_without_fffconvert_stops(converted: Path, class_name: str):
    done = python(f"from transformers import {class_name} as M; M.from_pretrained({str(converted)!r})")
    assert done.returncode != 0
    assert "mismatch" in done.stderr.lower()


@pytest.mark.parametrize(
    "imports",
    [
        "import fffconvert, transformers.quantizers.auto",
        "import transformers.quantizers.auto, fffconvert",
        "import fffconvert.hub.quantizer, transformers",
    ],
)
def test_the_order_of_imports_does_not_matter(imports: str):
    done = python(f"{imports}; print('fff' in transformers.quantizers.auto.AUTO_QUANTIZER_MAPPING)")
    assert done.stdout == "True\n", done.stderr


class TestOtherClasses:
    def test_the_base_model_reads_what_a_head_wrote(self, converted: Path):
        whole, base = BertForMaskedLM.from_pretrained(converted), AutoModel.from_pretrained(converted)
        assert type(base) is BertModel
        assert torch.equal(logits(base), logits(whole.bert))

    def test_a_head_reads_what_the_base_model_wrote(
        self, bert: PreTrainedModel, to_converted: Convert, tmp_path: Path
    ):
        base = to_converted(bert.bert)
        base.save_pretrained(tmp_path)
        read = AutoModelForMaskedLM.from_pretrained(tmp_path)
        assert torch.equal(logits(read.bert), logits(base))

    def test_what_another_class_read_it_writes_in_its_own_names(self, converted: Path, tmp_path: Path):
        base = AutoModel.from_pretrained(converted)
        base.save_pretrained(tmp_path / "again")
        names = json.loads((tmp_path / "again/config.json").read_text())["quantization_config"]["modules"]
        assert list(names) == [f"encoder.layer.{n}.intermediate.dense" for n in range(2)]
        assert torch.equal(logits(BertModel.from_pretrained(tmp_path / "again")), logits(base))

    def test_a_part_of_the_model_reads_its_part(self, to_converted: Convert, tmp_path: Path):
        whole = to_converted(next(case for case in ARCHITECTURES if case.name == "t5").build())
        whole.save_pretrained(tmp_path)
        part = T5EncoderModel.from_pretrained(tmp_path).encoder
        assert torch.equal(logits(part), logits(whole.encoder))


class TestLoadedModel:
    def test_can_be_trained_cast_copied_and_saved_again(self, converted: Path, tmp_path: Path):
        model = BertForMaskedLM.from_pretrained(converted)
        copied = copy.deepcopy(model).half().float()
        copied.save_pretrained(tmp_path / "again")
        assert torch.equal(logits(BertForMaskedLM.from_pretrained(tmp_path / "again")), logits(copied))
        data = [{"input_ids": torch.arange(5), "labels": torch.arange(5)}] * 4
        before = model.bert.encoder.layer[0].intermediate.dense.layer.fff_bias.clone()
        arguments = TrainingArguments(tmp_path / "run", max_steps=2, use_cpu=True, report_to=[], save_steps=1)
        Trainer(model, arguments, train_dataset=data).train()
        assert not torch.equal(model.bert.encoder.layer[0].intermediate.dense.layer.fff_bias, before)
        trained = BertForMaskedLM.from_pretrained(tmp_path / "run/checkpoint-2")
        assert torch.equal(logits(trained), logits(model.eval()))

    def test_is_read_in_the_dtype_asked_for(self, converted: Path):
        model = BertForMaskedLM.from_pretrained(converted, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}

    def test_rows_lie_at_even_addresses(self, converted: Path):
        model = BertForMaskedLM.from_pretrained(converted)
        layers = [module for module in model.modules() if isinstance(module, FFFLayer)]
        assert len(layers) == 2
        assert all(p.data_ptr() % 64 == 0 for layer in layers for p in layer.parameters())


def test_models_from_the_same_config_are_left_alone(
    bert: PreTrainedModel, to_converted: Convert, tmp_path: Path
):
    teacher = BertForMaskedLM(bert.config)
    to_converted(bert)
    teacher.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_a_model_inside_a_converted_one_can_be_saved_by_itself(converted: Path, tmp_path: Path):
    inner = BertForMaskedLM.from_pretrained(converted).bert
    inner.save_pretrained(tmp_path / "inner")
    assert torch.equal(logits(BertModel.from_pretrained(tmp_path / "inner")), logits(inner))


def test_restored_models_are_saved_plain(bert: PreTrainedModel, to_converted: Convert, tmp_path: Path):
    expected = logits(bert)
    surgery.restore(to_converted(bert))
    mark_converted(bert)
    bert.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(BertForMaskedLM.from_pretrained(tmp_path)), expected)


class TestStrangersFolder:
    """A plan is data: whatever it says, it is refused in one line or read."""

    def test_a_newer_schema_names_the_release_to_install(self, converted: Path):
        edit_plan(converted, lambda plan: plan.update(schema_version=2, fffconvert_version="9.1"))
        self.refused(converted, r"stored in schema 2, .* reads up to 1; pip install 'fffconvert>=9.1'")

    def test_unknown_keys_are_warned_of(self, converted: Path):
        expected = logits(BertForMaskedLM.from_pretrained(converted))

        def edit(plan: dict[str, Any]) -> None:
            plan["colour"] = "blue"
            first_layer(plan)["taste"] = "sweet"
            first_layer(plan)["spec"]["smell"] = "none"

        edit_plan(converted, edit)
        with pytest.warns(UserWarning, match="ignored unknown keys") as caught:
            model = BertForMaskedLM.from_pretrained(converted)
        assert [key in str([str(w.message) for w in caught]) for key in ("colour", "taste", "smell")] == [
            True
        ] * 3
        assert torch.equal(logits(model), expected)

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            pytest.param(lambda p: p.pop("schema_version"), "schema_version .* is None", id="no version"),
            pytest.param(
                lambda p: p.update(schema_version="1"), "schema_version .* is '1'", id="text as version"
            ),
            pytest.param(lambda p: p.pop("modules"), "names no modules", id="no modules"),
            pytest.param(lambda p: p.update(modules=[1]), "names no modules", id="list of modules"),
            pytest.param(lambda p: first_layer(p).pop("spec"), "lacks spec", id="no spec"),
            pytest.param(lambda p: first_layer(p).pop("dense_weight"), "lacks dense_weight", id="no guard"),
            pytest.param(lambda p: first_layer(p)["placement"].pop("entry"), "entry", id="no entry"),
            pytest.param(lambda p: first_layer(p)["spec"].update(depth=-1), "depth is -1", id="depth -1"),
            pytest.param(lambda p: first_layer(p)["spec"].update(depth=99), "depth is 99", id="depth 99"),
            pytest.param(lambda p: first_layer(p)["spec"].update(depth="2"), "depth is '2'", id="depth text"),
            pytest.param(
                lambda p: first_layer(p)["spec"].update(activation="eval"),
                "unknown activation",
                id="activation",
            ),
            pytest.param(
                lambda p: first_layer(p)["spec"].update(d_in=25), "has width 25, its module has", id="width"
            ),
            pytest.param(
                lambda p: first_layer(p)["spec"].update(depth=MAX_DEPTH, trees=60_000),
                "which the checkpoint does not hold",
                id="terabytes",
            ),
            pytest.param(
                lambda p: first_layer(p)["spec"].update(trunk=2),
                "which the checkpoint does not hold",
                id="trunk",
            ),
            pytest.param(
                lambda p: first_layer(p)["placement"].update(entry=["bert.encoder.layer.7"]),
                "BertForMaskedLM has no block",
                id="no such module",
            ),
            pytest.param(
                lambda p: first_layer(p)["placement"].update(entry=[""]),
                "has no block|twice",
                id="whole model",
            ),
            pytest.param(
                lambda p: first_layer(p)["placement"].update(passed=["bert.encoder"]), "twice", id="nested"
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, converted: Path, edit: Callable[[dict[str, Any]], object], message: str
    ):
        edit_plan(converted, edit)
        self.refused(converted, message)

    def test_missing_tensors_are_never_made_up(self, converted: Path):
        state = load_file(converted / "model.safetensors")
        del state["bert.encoder.layer.0.intermediate.dense.layer.fff_in_weight"]
        save_file(state, converted / "model.safetensors", {"format": "pt"})
        self.refused(converted, "asks for fff_in_weight of shape .* which the checkpoint does not hold")

    def test_pickled_weights_are_refused(self, converted: Path):
        state = load_file(converted / "model.safetensors")
        (converted / "model.safetensors").unlink()
        torch.save(state, converted / "pytorch_model.bin")
        self.refused(converted, "expected safetensors")

    def refused(self, folder: Path, message: str) -> None:
        with pytest.raises(FFFError, match=message) as caught:
            BertForMaskedLM.from_pretrained(folder)
        assert "\n" not in str(caught.value)


def test_public_names_stay_functions_whatever_is_imported():
    import fffconvert.conversion
    import fffconvert.location

    for name in fffconvert.__all__:
        assert callable(getattr(fffconvert, name)), name
    assert set(fffconvert.__all__) <= set(dir(fffconvert))
