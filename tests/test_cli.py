"""The command line: what it prints where, how it ends, and what it leaves behind."""

from __future__ import annotations

import importlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.utils import logging
from typer.testing import CliRunner

from fffconvert.cli import app

MAIN = "from fffconvert.cli import main; main()"
WORDS = [f"{first}{second}" for first in "bdfgkl" for second in ("a", "e", "i", "o", "u")]
SMALL = ["--depth", "2", "--tokens", "2000"]
BLOCKS = [f"bert.encoder.layer.{n}.intermediate.dense" for n in range(2)]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def one_line(result: Any) -> str:
    """The message of a command that refused its input."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(autouse=True)
def _no_bars() -> Iterator[None]:
    """As the command line has it where stderr is no terminal; here transformers is imported already."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(10, 30))) for _ in range(200)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    return tmp_path / "text.txt"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny masked language model with its tokenizer."""
    folder = tmp_path / "model"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=40, **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    return folder


def test_lengths_beyond_the_positions_are_taken_back_with_a_word(model: Path, text: Path, tmp_path: Path):
    from transformers import RobertaConfig, RobertaModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    roberta = RobertaModel(RobertaConfig(vocab_size=40, max_position_embeddings=34, pad_token_id=0, **sizes))
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "roberta")
    roberta.save_pretrained(tmp_path / "roberta")
    options = ["--calibration", text, *SMALL, "--length", "64"]
    with pytest.warns(UserWarning, match="length 64 is more than RobertaModel takes; it goes on with 33"):
        result = run("convert", tmp_path / "roberta", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", ["convert", "plan"])
def test_rows_of_data_calibrate(model: Path, text: Path, tmp_path: Path, command: str):
    lines = text.read_text().split("\n\n")
    rows = tmp_path / "rows.jsonl"
    how = (
        ["--depth", "1", "--tokens", "2000"]
        if command == "convert"
        else ["--budget", "0.5", "--tokens", "2000"]
    )
    arguments = [command, model, *how, "-o", tmp_path / "out", "--calibration", rows]
    rows.write_text("\n".join(json.dumps({"body": line, "id": "x"}) for line in lines))
    assert "holds the fields body, id; expected text" in one_line(run(*arguments))
    result = run(*arguments, "--text-column", "body")
    assert result.exit_code == 0, result.output
    if command == "convert":
        import yaml

        assert yaml.safe_load((tmp_path / "out/fffconvert.yaml").read_text())["text_columns"] == ["body"]


class TestInspect:
    def test_people_get_a_table(self, model: Path):
        result = run("inspect", model)
        assert result.exit_code == 0, result.output
        for word in (
            *BLOCKS,
            "plain",
            "gelu",
            "2 blocks, 2,144 parameters",
            f"next: fffconvert convert {model}",
        ):
            assert word in result.stdout

    def test_programs_get_one_document(self, model: Path):
        (model / "model.safetensors").unlink()
        result = run("inspect", model, "--json")
        found = json.loads(result.stdout)
        assert [block["name"] for block in found["blocks"]] == BLOCKS
        first = found["blocks"][0]
        assert first["parameters"] == 2 * 16 * 32 + 16 + 32
        assert 0 < first["macs_share"] < 0.5
        assert (first["kind"], first["d_model"], first["d_hidden"], first["layer"]) == ("plain", 16, 32, 0)
        assert (first["activation"], first["gated"], first["shared_calls"]) == ("gelu", False, 1)
        assert found["model"] == str(model)
        assert (found["skipped"], found["layers"]) == ([], [])

    def test_experts_are_passed_over_with_the_reason(self, tmp_path: Path):
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = MixtralConfig(vocab_size=40, num_key_value_heads=2, num_local_experts=2, **sizes)
        MixtralForCausalLM(config).save_pretrained(tmp_path)
        found = json.loads(run("inspect", tmp_path, "--json").stdout)
        assert found["blocks"] == []
        assert "expert" in found["skipped"][0]["reason"]

    def test_a_model_without_any_is_refused(self, tmp_path: Path):
        MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1)).save_pretrained(
            tmp_path
        )
        assert "has no feedforward block" in one_line(run("inspect", tmp_path))


class TestConvert:
    def test_writes_a_model_that_transformers_reads(self, model: Path, text: Path, tmp_path: Path):
        result = run("convert", model, *SMALL, "--calibration", text, "-o", tmp_path / "out")
        assert result.exit_code == 0, result.output
        for word in (
            *BLOCKS,
            "Retained: R²",
            "Storage:",
            "Nothing has been trained",
            "next: fffconvert inspect",
        ):
            assert word in result.stdout
        read = AutoModel.from_pretrained(tmp_path / "out")
        assert read.encoder.layer[1].intermediate.dense.layer.spec.depth == 2
        assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("ba be") == ["ba", "be"]
        assert {"README.md", "fffconvert.yaml", "metrics.json"} <= {
            p.name for p in (tmp_path / "out").iterdir()
        }
        layers = json.loads(run("inspect", tmp_path / "out", "--json").stdout)["layers"]
        assert [layer["name"] for layer in layers] == BLOCKS

    def test_json_is_all_that_stdout_holds(self, model: Path, text: Path, tmp_path: Path):
        options = ["--trees", 2, "--trunk", 1, "--layer", "paper", "--include", "layer.1", "--json"]
        result = run("convert", model, *SMALL, *options, "--calibration", text, "-o", tmp_path / "out")
        found = json.loads(result.stdout)
        assert found["output"] == str(tmp_path / "out")
        assert found["seconds"] > 0
        block = found["blocks"][0]
        assert [block["name"] for block in found["blocks"]] == BLOCKS[1:]
        assert (block["trees"], block["depth"], block["trunk"], block["active_width"]) == (2, 2, 1, 7)
        assert block["active_fraction"] == pytest.approx(7 / 32)
        assert block["r2_heldout"] <= 1
        assert json.loads((tmp_path / "out/metrics.json").read_text())["blocks"] == found["blocks"]

    def test_leaf_blocks_are_fitted_saved_and_read_back(self, model: Path, text: Path, tmp_path: Path):
        options = ["--leaf-width", 3, "--no-sequential", "--refine", 1, "--json"]
        result = run("convert", model, *SMALL, *options, "--calibration", text, "-o", tmp_path / "out")
        block = json.loads(result.stdout)["blocks"][0]
        assert (block["leaf_width"], block["active_width"]) == (3, 6)
        assert 0 <= block["routing_entropy"] <= 1
        assert len(block["margins"]) == 3
        read = AutoModel.from_pretrained(tmp_path / "out")
        assert "1x2" in run("inspect", tmp_path / "out").stdout
        assert read.encoder.layer[1].intermediate.dense.layer.fff_leaf_out_weight.shape[:3] == (1, 8, 3)
        refused = run("convert", model, *SMALL, "--leaf-width", 3, "--layer", "paper", "-o", tmp_path / "no")
        assert "--leaf-width is 3" in one_line(refused)

    def test_a_plan_is_measured_and_converted(self, model: Path, text: Path, tmp_path: Path):
        plan, common = tmp_path / "plan.yaml", ["--tokens", 2000, "--calibration", text, "--json"]
        result = run("plan", model, "--budget", 0.6, *common, "-o", plan, "--plot", tmp_path / "p.png")
        planned = json.loads(result.stdout)["blocks"]
        assert [block["name"] for block in planned] == BLOCKS
        assert (tmp_path / "p.png").stat().st_size > 1000
        done = run("convert", model, "--plan", plan, *common, "-o", tmp_path / "out")
        for block, expected in zip(json.loads(done.stdout)["blocks"], planned, strict=True):
            assert block["active_fraction"] == pytest.approx(expected["active_fraction"])

    def test_a_dry_run_shows_the_plan_and_writes_nothing(self, model: Path, text: Path, tmp_path: Path):
        before = sorted(tmp_path.rglob("*"))
        arguments = ("convert", model, *SMALL, "--calibration", text, "-o", tmp_path / "out", "--dry-run")
        assert "nothing was fitted or written" in run(*arguments).stdout
        found = json.loads(run(*arguments, "--json").stdout)
        assert [block["name"] for block in found["blocks"]] == BLOCKS
        assert found["blocks"][0]["active_fraction"] == pytest.approx(3 / 32)
        assert found["blocks"][0]["r2_heldout"] is None
        assert sorted(tmp_path.rglob("*")) == before

    def test_overwrite_is_asked_for(self, model: Path, text: Path, tmp_path: Path):
        arguments = ("convert", model, *SMALL, "--calibration", text, "-o", tmp_path / "out")
        assert run(*arguments).exit_code == 0
        assert "exists; choose another --output, or add --overwrite" in one_line(run(*arguments))
        assert run(*arguments, "--overwrite").exit_code == 0


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def spoil_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["bert.encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def newer_schema(folder: Path) -> None:
    plan = {"quant_method": "fff", "schema_version": 99, "fffconvert_version": "7.0", "modules": {}}
    edit_config(folder, lambda config: config.update(quantization_config=plan))


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds a config but no weights"),
    "truncated": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"),
        "is cut off or damaged",
    ),
    "NaN": (spoil_weights, "layer.0.output.dense.weight of .* is NaN or infinite"),
    "newer schema": (newer_schema, "pip install 'fffconvert>=7.0'"),
    "no tokenizer": (lambda folder: (folder / "vocab.txt").unlink(), "has no tokenizer"),
    "empty text": (lambda folder: (folder.parent / "text.txt").write_text(""), "text.txt"),
    "no text": (lambda folder: (folder.parent / "text.txt").write_bytes(b"\xff\xfe\0\x81"), "text.txt"),
    "text gone": (lambda folder: (folder.parent / "text.txt").unlink(), "text.txt"),
}
OPTIONS: dict[str, tuple[list[str], str]] = {
    "depth -1": (["--depth", "-1"], "depth is -1; expected an integer from 0 to"),
    "depth 40": (["--depth", "40"], "depth is 40; expected an integer from 0 to"),
    "depth text": (["--depth", "deep"], "'--depth'"),
    "no trees": (["--trees", "0"], "trees is 0"),
    "few tokens": (["--tokens", "3"], "tokens is 3"),
    "short sequences": (["--length", "3"], "length is 3"),
    "layer": (["--layer", "leafy"], "'--layer'"),
    "include matches nothing": (["--include", "zebra"], "--include 'zebra' matches nothing"),
    "include matches no block": (["--include", "embeddings"], "none that is a feedforward block"),
    "exclude matches nothing": (["--exclude", "zebra"], "--exclude 'zebra' matches nothing"),
    "exclude matches all": (["--exclude", "layer.*"], "--exclude leaves none"),
    "unknown option": (["--colour", "blue"], "--colour"),
    "revision": (["--revision", "v1"], "--revision v1"),
}


class TestBadInput:
    """Each with one line on stderr, exit status 2, and nothing written."""

    @pytest.mark.parametrize("spoil", SPOILED)
    def test_spoiled(self, model: Path, text: Path, tmp_path: Path, spoil: str):
        change, message = SPOILED[spoil]
        change(model)
        self.refused(tmp_path, message, model, *SMALL)

    @pytest.mark.parametrize("option", OPTIONS)
    def test_options(self, model: Path, text: Path, tmp_path: Path, option: str):
        options, message = OPTIONS[option]
        self.refused(tmp_path, message, model, *SMALL, *options)

    @pytest.mark.parametrize("name", ["no-such-model", "nobody/nothing", "./nowhere", "pkg:absent", "a.gguf"])
    def test_unknown_models(self, text: Path, tmp_path: Path, name: str):
        self.refused(tmp_path, name.removeprefix("pkg:"), name, *SMALL)

    def refused(self, tmp_path: Path, message: str, *arguments: object) -> None:
        before = sorted(tmp_path.rglob("*"))
        calibration = ("--calibration", tmp_path / "text.txt")
        line = one_line(run("convert", *arguments, *calibration, "-o", tmp_path / "out"))
        assert line.startswith("fffconvert: ")
        assert re.search(message, line), line
        assert sorted(tmp_path.rglob("*")) == before


class TestEndings:
    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], Any]:
        def convert(error: BaseException, *flags: str) -> Any:
            def fail(*_: object, **__: object) -> None:
                raise error

            monkeypatch.setattr(importlib.import_module("fffconvert.conversion"), "convert_model", fail)
            return run("convert", "model", "--depth", "2", "-o", "out", *flags)

        return convert

    def test_ctrl_c(self, failing):
        result = failing(KeyboardInterrupt())
        assert (result.exit_code, result.stderr) == (
            130,
            "interrupted; nothing is half written: run the same command again\n",
        )

    def test_a_fault_of_ours_is_one_line_too(self, failing):
        result = failing(RuntimeError("broken\ninside"))
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert "RuntimeError: broken (--debug shows where)" in result.stderr

    @pytest.mark.parametrize("error", [RuntimeError("broken"), FileNotFoundError("gone")])
    def test_debug_shows_where(self, failing, error: Exception):
        assert failing(error, "--debug").exception is error

    def test_in_a_process_of_its_own(self, tmp_path: Path):
        command = [sys.executable, "-c", MAIN, "convert", str(tmp_path), "--depth", "2", "-o", "x"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"fffconvert: folder {tmp_path} holds no config.json")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("accelerate", "train", ["distill", "DIR", "--recipe", "recipe.yaml", "-o", "out"]),
        ("accelerate", "train", ["report", "DIR", "--full", "--data-dir", "data", "-o", "out"]),
        ("sklearn", "eval", ["report", "DIR", "--full", "--data-dir", "data", "-o", "out"]),
        ("accelerate", "eval", ["evaluate", "DIR", "--task", "rte"]),
        ("sklearn", "eval", ["evaluate", "DIR", "--task", "probe"]),
        ("matplotlib", "report", ["report", "DIR"]),
        ("jinja2", "report", ["report", "DIR"]),
    ],
)
def test_a_missing_package_is_named_before_any_work(monkeypatch, package: str, extra: str, arguments):
    monkeypatch.setitem(sys.modules, package, None)  # what import finds when it is not installed
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"needs {package}; pip install 'fffconvert[{extra}]'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_library_draws_bars_where_nobody_looks():
    code = (
        "from fffconvert.cli.running import _quiet; _quiet()\n"
        "from tqdm.auto import tqdm; import datasets\n"
        "datasets.Dataset.from_list([{'a': 1}]).map(lambda row: row, desc='rows')\n"
        "list(tqdm(range(3)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_info_says_why_a_backend_is_missing():
    found = json.loads(run("info", "--json").stdout)
    assert found["versions"]["torch"] == torch.__version__
    assert found["cpu"]["threads"] == torch.get_num_threads()
    by_name = {backend["name"]: backend for backend in found["backends"]}
    assert by_name["reference"]["available"]
    assert all(backend["available"] or backend["reason"] for backend in by_name.values())
    text = run("info").stdout
    assert all(name in text for name in by_name)
