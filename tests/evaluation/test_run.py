"""The whole of `evaluate`: its document, what it stores, its files, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import logging
from typer.testing import CliRunner

import fffconvert as fff
from fffconvert.cli import app
from fffconvert.errors import FFFError
from fffconvert.evaluation import TASKS, run
from fffconvert.evaluation.compare import recovered, retained, row
from fffconvert.evaluation.metrics import ACCURACY
from fffconvert.evaluation.results import SECTIONS, write_results
from fffconvert.options import EvaluateOptions
from fffconvert.options.fields import descriptions

logging.disable_progress_bar()


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def one_line(result: Any) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if "warning" not in line]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture
def place(tmp_path: Path, data: Path) -> list[object]:
    """Options of every call."""
    return ["--data-dir", data]


def test_the_document(save: Callable[..., Path], place: list[object], tmp_path: Path):
    model, teacher, ablated = save("encoder"), save("encoder", 1), save("encoder", 2)
    controls = ["--teacher", teacher, "--control", f"ablated={ablated}", "--control", f"no-name={model}"]
    result = call(model, "--task", "STS_B", *controls, *place, "--json", "-o", tmp_path / "results.json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "results.json").read_text())
    row = document["tasks"]["sts-b"]
    assert (row["metric"], row["n"], row["limit"]) == ("spearman", 40, None)
    assert row["ci95"][0] <= row["value"] <= row["ci95"][1]
    assert row["retained"] == pytest.approx(row["value"] / row["teacher"])
    assert row["recovered"] == pytest.approx(
        (row["value"] - row["ablated"]) / (row["teacher"] - row["ablated"])
    )
    assert row["no_name"] == row["value"]
    assert row["dense"] is None
    assert row["random_routing"] is None
    assert set(row["ci95_of"]) == {"teacher", "ablated", "no_name"}
    assert document["environment"]["versions"]["fffconvert"] == fff.__version__


def test_people_get_a_table_and_a_limit_is_marked(save: Callable[..., Path], place: list[object]):
    model = save("encoder")
    options = ["--task", "sts-b", "--limit", "10", "--teacher", model, "--control", f"dense={model}", *place]
    result = call(model, *options)
    assert result.exit_code == 0, result.output
    for words in ("spearman", "100.0%", "(limited)", "quick look", "cannot be told from dense blocks"):
        assert words in result.stdout
    document = json.loads(call(model, *options, "--json").stdout)
    assert document["tasks"]["sts-b"]["limit"] == document["tasks"]["sts-b"]["n"] == 10


def test_groups_leave_out_what_is_not_there(save: Callable[..., Path], place: list[object]):
    with pytest.warns(UserWarning, match="not there: sts13, sts14, sts15, sts16, sick-r"):
        result = call(save("encoder"), "--task", "sts", *place, "--json")
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["tasks"]) == {"sts-b", "sts12"}
    assert "has no embed/sts13" in one_line(call(save("encoder"), "--task", "sts13", *place))


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("encoder", "retrieval"),
        ("encoder", "probe-subj"),
        ("masked", "mlm"),
        ("masked", "pseudo-perplexity"),
        ("causal", "perplexity"),
        ("masked", "agreement"),
        ("masked", "token-agreement"),
        ("causal", "token-agreement"),
    ],
)
def test_every_kind_of_task(kind: str, task: str, save: Callable[..., Path], data: Path, tmp_path: Path):
    pytest.importorskip("sklearn")
    results = fff.evaluate(save(kind), [task], teacher=save(kind, 1), data_dir=data, limit=8)
    row = results["tasks"][task]
    assert np.isfinite(row["value"])
    assert row["ci95"] is None or row["ci95"][0] <= row["ci95"][1]
    if not TASKS[task].beside_teacher:
        share = row["value"] / row["teacher"]
        assert row["retained"] == pytest.approx(share if row["higher_is_better"] else 1 / share)
    if task == "perplexity":
        text = (data / "text/wikitext2/wiki.test.raw.txt").read_text()
        assert 0 < row["bytes"] <= len(text.encode())
        assert row["length"] == 64


def test_bytes_of_a_whole_text(save: Callable[..., Path], data: Path, tmp_path: Path):
    results = fff.evaluate(save("causal"), ["perplexity"], data_dir=data)
    row = results["tasks"]["perplexity"]
    text = (data / "text/wikitext2/wiki.test.raw.txt").read_text()
    assert row["bytes"] == len(text.encode())
    assert row["tokens"] == len(text.split()) + 2
    bits = math.log2(row["value"]) * (row["tokens"] - 1)
    assert row["bits_per_byte"] == pytest.approx(bits / row["bytes"])


def test_what_was_measured_is_not_measured_again(
    save: Callable[..., Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, options = save("encoder"), {"data_dir": data}
    first = fff.evaluate(model, ["sts-b"], **options)
    measured: list[str] = []
    similarity = run.TASKS["sts-b"].measure
    counting = type(TASKS["sts-b"])(
        **{**vars(TASKS["sts-b"]), "measure": lambda *a: measured.append(a[0].role) or similarity(*a)}
    )
    monkeypatch.setitem(TASKS, "sts-b", counting)
    assert fff.evaluate(model, ["sts-b"], **options)["tasks"] == first["tasks"]
    assert measured == []
    fff.evaluate(model, ["sts-b"], teacher=save("encoder", 1), **options)
    assert measured == ["teacher"]
    fff.evaluate(model, ["sts-b"], limit=5, **options)
    assert measured == ["teacher", "model"]


def test_a_deployed_model_is_measured_anew(
    build: Any, tokenizer: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Rows in int8 change what an untrained conversion answers; its weights stay the same."""
    model = build("encoder")
    batch = {"input_ids": torch.randint(5, 35, (8, 32))}
    fff.convert(model, depth=3, calibration=[batch] * 4, example_inputs=batch)
    options = {"tokenizer": tokenizer, "data_dir": data}

    def value(cache: str) -> float:
        monkeypatch.setenv("FFFCONVERT_CACHE", str(tmp_path / cache))
        return fff.evaluate(model, ["sts-b"], **options)["tasks"]["sts-b"]["value"]

    before = value("shared")
    fff.deploy(model, backend="reference", dtype="int8")
    assert value("shared") == value("fresh") != before


def test_results_are_merged_task_by_task(tmp_path: Path, save: Callable[..., Path], place: list[object]):
    model = save("encoder")
    (model / "fffconvert.yaml").write_text("made: by hand\n")
    for task in ("sts-b", "sts12"):
        assert call(model, "--task", task, *place).exit_code == 0
    document = json.loads((model / "eval.json").read_text())
    assert list(document["tasks"]) == ["sts-b", "sts12"]
    assert call(model, "--task", "sts-b", "--limit", "9", *place).exit_code == 0
    assert json.loads((model / "eval.json").read_text()) == document  # a quick look takes nothing's place
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(FFFError, match="no file of results"):
        write_results(tmp_path / "other.json", document)
    (tmp_path / "folder").mkdir()
    before = set(tmp_path.iterdir())
    assert "cannot write" in one_line(call(model, "--task", "sts-b", *place, "-o", tmp_path / "folder"))
    assert set(tmp_path.iterdir()) == before


def test_the_original_of_a_conversion_is_its_teacher(save: Callable[..., Path], place: list[object]):
    model, teacher = save("encoder"), save("encoder", 1)
    (model / "fffconvert.yaml").write_text(f"model: {teacher}\n")
    document = json.loads(call(model, "--task", "sts-b", *place, "--json").stdout)
    assert document["teacher"] == str(teacher)
    assert document["tasks"]["sts-b"]["retained"] is not None
    (model / "fffconvert.yaml").write_text("model: ./gone\n")
    with pytest.warns(UserWarning, match="goes on without the original ./gone as teacher: no model folder"):
        result = call(model, "--task", "sts-b", *place, "--json")
    assert json.loads(result.stdout)["teacher"] is None


def test_models_in_memory(build: Any, tokenizer: Any, data: Path, tmp_path: Path):
    results = fff.evaluate(
        build("encoder"),
        ["sts-b"],
        teacher=build("encoder"),
        tokenizer=tokenizer,
        data_dir=data,
    )
    assert results["tasks"]["sts-b"]["retained"] == 1.0
    with pytest.raises(FFFError, match="model BertModel has no tokenizer"):
        fff.evaluate(build("encoder"), ["sts-b"], data_dir=data)


def test_a_teacher_with_another_tokenizer_or_width(save: Callable[..., Path], place: list[object]):
    model, teacher = save("encoder"), save("encoder", 1)
    options = [model, "--task", "sts-b", "--teacher", teacher, *place]
    vocabulary = (teacher / "vocab.txt").read_text()
    (teacher / "vocab.txt").write_text(vocabulary + "\nzu")
    assert "has another tokenizer (36 tokens)" in one_line(call(*options))
    (teacher / "vocab.txt").write_text(vocabulary)
    config = json.loads((teacher / "config.json").read_text())
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(**{**config, "hidden_size": 32})).save_pretrained(teacher)
    assert "has width 32" in one_line(call(*options))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "sts-c"], "unknown task 'sts-c'; did you mean sts-b?"),
        (["--task", "agreement"], "give one with --teacher"),
        (["--task", "mlm"], "got a BertModel; expected a masked"),
        (["--task", "perplexity"], "got a BertModel; expected a causal"),
        (["--task", "mlm", "--text", "none.txt"], "text file none.txt does not exist"),
        (["--task", "sts-b", "--control", "ablated"], "--control is 'ablated'; expected a name"),
        (["--task", "sts-b", "--control", "value=x"], "cannot be called so"),
        (["--task", "sts-b", "--limit", "1"], "--limit is 1; expected at least 2"),
        (["--task", "sts-b", "--teacher", "./none"], "no model folder ./none"),
        (["--task", "sts-b", "--device", "abacus"], "device abacus cannot be used"),
    ],
)
def test_refusals(arguments: list[str], message: str, save: Callable[..., Path], place: list[object]):
    assert message in one_line(call(save("encoder"), *arguments, *place))


def test_a_folder_that_is_no_model(tmp_path: Path, place: list[object]):
    assert "holds no config.json" in one_line(call(tmp_path, "--task", "sts-b", *place))


def test_shares():
    own, teacher, ablated = (np.array([[1, float(n < right)] for n in range(10)]) for right in (7, 9, 5))
    assert retained(ACCURACY, [own, teacher]) == pytest.approx(7 / 9)
    assert recovered(ACCURACY, [own, teacher, ablated]) == pytest.approx(0.5)
    assert np.isnan(recovered(ACCURACY, [own, teacher, teacher]))
    backwards = dataclasses.replace(ACCURACY, higher_is_better=False)
    assert retained(backwards, [own, teacher]) == pytest.approx(9 / 7)
    assert np.isnan(retained(backwards, [np.array([[1.0, 0.0]]), teacher]))


@pytest.mark.parametrize(("right", "unclear"), [(20, False), (36, False), (39, True), (40, True)])
def test_a_share_of_nothing_is_unclear(right: int, unclear: bool):
    results = {
        role: {"units": [[1, float(n < count)] for n in range(40)], "facts": {}, "seconds": 0.0}
        for role, count in {"model": 30, "teacher": 40, "ablated": right}.items()
    }
    assert row(TASKS["rte"], "", results, None)["recovered_unclear"] is unclear


def test_what_is_unclear_is_said(save: Callable[..., Path], place: list[object]):
    model, teacher = save("encoder"), save("encoder", 1)
    options = ["--teacher", teacher, "--control", f"ablated={teacher}", *place]
    shown = " ".join(call(model, "--task", "sts-b", *options).stdout.split())
    assert "unclear" in shown
    assert "ablating all blocks costs nothing that shows on sts-b" in shown


def test_the_help_names_every_task(data: Path, save: Callable[..., Path], place: list[object]):
    told = descriptions(EvaluateOptions)["tasks"]
    assert {*TASKS, *SECTIONS} - {"sts13", "sts14", "sts15"} <= set(re.split(r"[ ,;:().]+", told))
    for path in (data / "text/wikitext2").iterdir():
        path.unlink()
    assert "has no text/wikitext2/wiki.test.raw; name text with --text" in one_line(
        call(save("masked"), "--task", "mlm", *place)
    )
