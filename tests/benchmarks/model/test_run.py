from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

import fffconvert as fff
from fffconvert.benchmarks.model import inputs, run
from fffconvert.benchmarks.model.parts import PARTS, part_times
from fffconvert.benchmarks.model.process import Runtime, WorkerError
from fffconvert.benchmarks.model.run import _within_positions
from fffconvert.benchmarks.model.settings import ModelBench
from fffconvert.benchmarks.model.torch_models import original_name, stored_config
from fffconvert.cli import app
from fffconvert.errors import FFFError

OWN = ("undeployed", "fffconvert", "fffconvert-int8")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny causal model and its conversion."""
    path = tmp_path_factory.mktemp("bench")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=80, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(path / "original")
    batch = {"input_ids": torch.randint(0, 80, (8, 32))}
    fff.convert(model, depth=2, calibration=[batch] * 4, example_inputs=batch)
    model.config.quantization_config.base_model = str(path / "original")
    model.save_pretrained(path / "fff")
    return path


@pytest.mark.slow
def test_measures_every_runtime_and_writes_the_document(folders):
    shutil.rmtree(folders / "fff" / "bench.json", ignore_errors=True)
    command = ["bench", str(folders / "fff"), "--baselines", "torch,ort-int8", "--sizes", "1x8"]
    done = CliRunner().invoke(app, [*command, "--generate", "4", "--seconds", "0.1", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["problems"] == []
    assert document == json.loads((folders / "fff" / "bench.json").read_text())
    rows = {row["runtime"]: row for row in document["rows"]}
    assert list(rows) == ["torch", "ablated", "ort-int8", *OWN, "exported-int8"]
    for row in rows.values():
        assert (row["batch"], row["length"]) == (1, 8)
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["speedup_vs_torch"] == pytest.approx(rows["torch"]["median_ms"] / row["median_ms"])
        assert row["amdahl_cap"] == pytest.approx(rows["torch"]["median_ms"] / rows["ablated"]["median_ms"])
    assert rows["undeployed"]["max_error"] < 1e-4
    assert rows["exported-int8"]["median_error"] < 0.1
    assert rows["ort-int8"]["max_error"] > rows["torch"]["max_error"] == 0
    generation = {row["runtime"]: row for row in document["generation"]}
    assert set(generation) == {"torch", "ablated", *OWN}
    assert all(row["tokens_per_second"] > 0 for row in generation.values())
    assert {row["runtime"] for row in document["profile"]} == {"torch", "fffconvert", "fffconvert-int8"}
    assert all(set(row["ms"]) == set(PARTS) for row in document["profile"])
    memory = {row["runtime"]: row for row in document["runtimes"]}
    assert memory["ort-int8"]["peak_mb"] < memory["torch"]["peak_mb"]  # it carries no torch
    assert memory["torch"]["weights_mb"] > 0


def test_parts_add_up_to_the_whole():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = transformers.BertModel(config).eval()
    ids = torch.randint(0, 50, (1, 16))
    now = iter(range(0, 10**9, 1_000_000))
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr("fffconvert.benchmarks.model.parts.perf_counter_ns", lambda: next(now))
        parts = part_times(model, lambda: model(input_ids=ids), calls=2)
    # With a clock that moves on at each look, a part's time is the number of times that it was entered.
    assert parts["norm"] > 0
    assert parts["attention"] > 0
    assert parts["embedding"] > 0
    dense = parts["feedforward"]
    assert dense > 0
    batch = {"input_ids": torch.randint(0, 50, (4, 64))}
    fff.convert(model, depth=2, calibration=[batch] * 4, example_inputs=batch)
    with torch.inference_mode():
        converted = part_times(model, lambda: model(input_ids=ids), calls=2)
    assert converted["feedforward"] > 0
    assert set(converted) == set(PARTS)


def test_inputs_are_read_as_written_and_differ(tmp_path):
    example = {"input_ids": np.zeros((2, 5), np.int64), "attention_mask": np.ones((2, 5), np.int64)}
    inputs.write(tmp_path, (2, 5), example, 30)
    batches = inputs.read(tmp_path, (2, 5))
    assert len(batches) == inputs.DRAWN
    assert all(list(batch) == ["input_ids", "attention_mask"] for batch in batches)
    assert not np.array_equal(batches[0]["input_ids"], batches[1]["input_ids"])
    assert all((batch["input_ids"] < 30).all() for batch in batches)
    assert all((batch["attention_mask"] == 1).all() for batch in batches)


def test_errors_are_relative_and_see_another_shape():
    y = np.array([[[3.0, 4.0]], [[0.0, 10.0]]])
    found = run._errors(y + np.array([0.5, 0.0]), y)
    assert found["max_error"] == pytest.approx(0.05)
    assert found["median_error"] == pytest.approx((0.1 + 0.05) / 2)
    assert run._errors(y[:1], y)["max_error"] == float("inf")


def test_a_runtime_that_cannot_start_says_why(tmp_path):
    inputs.write(tmp_path, (1, 4), {"input_ids": np.zeros((1, 4), np.int64)}, 9)
    with pytest.raises(WorkerError, match=r"ort: .*ort\.onnx"):
        Runtime("ort", tmp_path, {"threads": 1, "sizes": [[1, 4]]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baselines": ("tensorrt",)}, "`baselines` holds 'tensorrt'; expected some of torch,compile"),
        ({"sizes": ()}, "`sizes` is empty"),
        ({"sizes": ((0, 4),)}, "holds 0; expected BATCHxLENGTH"),
        ({"threads": 0}, "expected from 1"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(FFFError, match=message):
        ModelBench(model="m", **options)


def test_what_is_compared_with_what(folders):
    settings = {"model": str(folders / "fff"), "original": None, "depth": None}
    assert original_name(settings) == str(folders / "original")
    assert original_name(settings | {"original": "other"}) == "other"
    assert original_name(settings | {"depth": 3}) == str(folders / "fff")
    with pytest.raises(FFFError, match="is not converted; give a converted folder, or `depth`"):
        stored_config(str(folders / "original"))


def test_lengths_are_those_that_the_model_has_positions_for(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.RobertaConfig(vocab_size=40, max_position_embeddings=34, **sizes)
    config.architectures = ["RobertaModel"]
    config.save_pretrained(tmp_path)
    settings = ModelBench(model=str(tmp_path), sizes=((1, 8), (1, 64), (1, 128)), depth=1)
    with pytest.warns(UserWarning, match="length 64 is more than RobertaModel takes; it goes on with 32"):
        assert _within_positions(settings).sizes == ((1, 8), (1, 32))
