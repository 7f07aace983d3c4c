"""`estimate`: the published figures, the presets, what is refused, and what the sentences say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel, MixtralConfig, MixtralForCausalLM

import fffconvert as fff
from fffconvert.errors import FFFError
from fffconvert.estimation.anatomy import Block, Rows
from fffconvert.estimation.conversion import Budget, break_even_tokens, distinct_nodes
from fffconvert.estimation.models import preset, presets
from fffconvert.estimation.workload import Phase, Stream, Workload
from fffconvert.planning import FFFSpec

KEYS = {
    *("model", "layers", "d_model", "d_hidden", "trees", "depth", "nodes", "neurons_used", "neuron_share"),
    *(
        "ffn_speedup_vs_block",
        "ffn_speedup_vs_tree_size",
        "model_speedup_limit",
        "parameters",
        "macs_per_token",
    ),
}
TINY = BertConfig(
    vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2
)


@pytest.fixture(scope="module")
def bert() -> dict[str, object]:
    return fff.estimate("bert-base", depth=11, context=128).to_dict()


def test_published_figures_of_bert(bert: dict[str, object]):
    """341x and 256x by counting, 12 of 4,095 neurons. Reference: arXiv 2311.10770, abstract and section 3."""
    assert bert.keys() >= KEYS
    assert bert["ffn_speedup_vs_tree_size"] == 341.25
    assert bert["ffn_speedup_vs_block"] == 256
    assert (bert["neurons_used"], bert["nodes"], bert["layers"]) == (12, 4095, 12)
    assert bert["node_share"] == pytest.approx(0.00293, abs=5e-6)
    assert bert["model_speedup_limit"] == pytest.approx(2.85, abs=0.005)


def test_published_figures_of_gpt3_in_little_memory():
    """A tree of depth 15 uses 16 of GPT-3's 49,152 neurons."""
    code = (
        "import resource, sys; from fffconvert.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "estimate", "gpt3-175b", "--depth", "15", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["nodes"], found["neurons_used"], found["d_hidden"]) == (65535, 16, 49152)
    assert found["neuron_share"] == pytest.approx(0.000326, abs=5e-7)
    assert found["parameters"] == pytest.approx(175e9, rel=0.01)
    assert int(done.stderr.split()[-1]) * 1024 < 2e9  # its weights are 700 GB


@pytest.mark.parametrize("name", presets())
def test_presets_have_their_published_number_of_parameters(name: str):
    known = presets()[name]
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in known.build().parameters())
    assert parameters == pytest.approx(known.parameters, rel=0.01)
    assert known.source
    assert all(preset(name) is known for full in known.ids for name in (full, full.partition("/")[2]))


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("bert-base-uncased", "bert-base"),
        ("google-bert/bert-large-uncased", "bert-large"),
        ("FacebookAI/roberta-base", "roberta-base"),
        ("openai-community/gpt2-medium", "gpt2-medium"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3-8b"),
        ("Mistral-7B-v0.1", "mistral-7b"),
        ("Qwen/Qwen2.5-0.5B", "qwen2.5-0.5b"),
    ],
)
def test_hub_ids_name_presets(identifier: str, name: str):
    assert preset(identifier) is presets()[name]


def test_hub_ids_of_presets_need_no_hub(bert: dict[str, object]):
    found = fff.estimate("bert-base-uncased", depth=11, context=128)
    assert found.to_dict() == {**bert, "model": "bert-base-uncased"}


def test_a_folder_or_a_revision_is_not_answered_by_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    BertModel(TINY).save_pretrained("google-bert/bert-base-uncased")
    assert fff.estimate("google-bert/bert-base-uncased").to_dict()["layers"] == 2
    with pytest.raises(FFFError, match="--list"):
        fff.estimate("bert-base-uncased", revision="main")


@pytest.mark.parametrize(
    "name", ["t5-small", "whisper-tiny", "vit-base", "mixtral-8x7b", "qwen2.5-0.5b", "gemma-2b"]
)
def test_presets_of_every_kind_are_estimated(name: str):
    found = fff.estimate(name, context=256, hardware="h100", dtype="bfloat16").to_dict()
    assert found["model_speedup_limit"] > found["model_speedup"] > 1
    assert found["roofline"]["speedup_limit"] >= found["roofline"]["speedup"] > 0
    assert sum(v for k, v in found["macs_per_token"].items() if k != "total") == pytest.approx(
        found["macs_per_token"]["total"]
    )
    assert json.loads(json.dumps(found)) == found
    assert found["advice"]


def test_experts_are_said_to_be_left_alone():
    with torch.device("meta"):
        model = MixtralForCausalLM(
            MixtralConfig(
                vocab_size=61,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                num_local_experts=4,
            )
        )
    found = fff.estimate(model, depth=2).to_dict()
    assert (found["d_hidden"], found["gated"], found["layers"]) == (48, True, 2)
    assert any("leaves alone" in sentence for sentence in found["advice"])


def test_folder_config_and_live_model_agree(tmp_path: Path):
    model = BertModel(TINY)
    TINY.architectures = ["BertModel"]
    TINY.save_pretrained(tmp_path)
    found = [
        fff.estimate(given, depth=3, context=17).to_dict()
        for given in (model, str(tmp_path), str(tmp_path / "config.json"))
    ]
    for key in KEYS - {"model"}:
        assert found[0][key] == found[1][key] == found[2][key]


def test_any_module_is_estimated():
    layer = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 48, batch_first=True), 2, enable_nested_tensor=False
    )
    found = fff.estimate(layer, depth=3, context=13, example_inputs={"src": torch.randn(3, 13, 16)}).to_dict()
    assert (found["d_hidden"], found["layers"]) == (48, 2)
    assert found["macs_per_token"]["feedforward"] == 2 * 2 * 16 * 48
    assert found["macs_per_token"]["attention_projections"] == 2 * 4 * 16 * 16
    assert found["macs_per_token"]["attention_context"] == 2 * 2 * 13 * 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 60}, "depth is 60; expected an integer from 0 to 20"),
        ({"depth": -1}, "depth is -1"),
        ({"trees": 0}, "trees is 0"),
        ({"trunk": -4}, "trunk is -4"),
        ({"batch": 0}, "batch is 0; expected a whole number from 1"),
        ({"context": -5}, "context is -5"),
        ({"active_fraction": 1.5}, "active_fraction is 1.5"),
        ({"active_fraction": 0.5, "trees": 2}, "expected one of them"),
        ({"active_fraction": 0.001}, "less than one tree of depth 11"),
        ({"hardware": "abacus"}, "unknown hardware 'abacus'; expected this"),
        ({"dtype": "float8"}, "`dtype` is 'float8'"),
        ({"phase": "dream"}, "`phase` is 'dream'; expected one of prefill, decode, train"),
        ({"phase": "decode"}, "does not generate"),
        ({"train_tokens": -1}, "`train_tokens` is -1"),
    ],
)
def test_the_impossible_is_refused_in_one_line(options: dict[str, object], message: str):
    with pytest.raises(FFFError, match=message) as error:
        fff.estimate("bert-base", **options)
    assert "\n" not in str(error.value)


def test_unknown_and_converted_models_are_refused(tmp_path: Path):
    with pytest.raises(FFFError, match="--list"):
        fff.estimate("no-such-model")
    config = BertConfig(**TINY.to_diff_dict(), quantization_config={"quant_method": "fff"})
    model = BertModel(TINY)
    model.config = config
    with pytest.raises(FFFError, match="already converted"):
        fff.estimate(model)


def test_active_fraction_chooses_the_trees():
    found = fff.estimate("bert-base", depth=11, active_fraction=0.05)
    assert found.spec.trees == 12  # 153.6 neurons at 12 each
    assert found.spec.active_width <= 0.05 * 3072


def test_depth_is_the_least_with_as_many_nodes_as_neurons():
    block = Block("b", 8, 3072, 2 * 8 * 3072, Rows(1, Stream.TOKEN), 0, False, False, "gelu")
    assert Budget().spec(block).depth == 11
    assert Budget().spec(Block(**{**vars(block), "d_hidden": 49152})).depth == 15
    assert Budget().spec(Block(**{**vars(block), "d_hidden": 4095})).nodes == 4095
    assert Budget().spec(Block(**{**vars(block), "d_hidden": 4096})).nodes == 8191


@settings(max_examples=60, deadline=None)
@given(depth=st.integers(0, 12), trees=st.integers(1, 8), tokens=st.integers(1, 10_000))
def test_distinct_nodes_lie_between_one_path_and_all(depth: int, trees: int, tokens: int):
    spec = FFFSpec(8, 8, depth, trees)
    found = distinct_nodes(spec, tokens)
    assert trees * (depth + 1) - 1e-6 <= found <= min(trees * spec.nodes, tokens * trees * (depth + 1)) + 1e-6


def test_distinct_nodes_agree_with_drawing_paths():
    spec, tokens = FFFSpec(8, 8, 6), 40
    leaves = torch.randint(0, 64, (500, tokens), generator=torch.Generator().manual_seed(0))
    drawn = sum(len((row >> (6 - k)).unique()) for row in leaves for k in range(7)) / len(leaves)
    assert distinct_nodes(spec, tokens) == pytest.approx(drawn, rel=0.01)


def test_break_even_is_the_first_batch_that_moves_as_much():
    block = Block("b", 8, 100, 1600, Rows(1, Stream.TOKEN), 0, False, False, "gelu")
    spec = FFFSpec(8, 8, 7)
    tokens = break_even_tokens(block, spec)
    assert tokens is not None
    assert distinct_nodes(spec, tokens) >= 100 > distinct_nodes(spec, tokens - 1)
    assert break_even_tokens(block, FFFSpec(8, 8, 5)) is None


def test_the_longer_the_context_the_smaller_the_limit():
    rows = fff.estimate("gpt2").to_dict()["by_context"]
    limits = [row["model_speedup_limit"] for row in rows]
    assert limits == sorted(limits, reverse=True)


def test_advice_names_the_most_trees_that_keep_nine_tenths():
    from fffconvert.estimation.advice import most_trees

    found = fff.estimate("bert-base", depth=11, context=128)
    trees = most_trees(found)
    gains = [
        fff.estimate("bert-base", depth=11, context=128, trees=count).model_speedup - 1
        for count in (trees, trees + 1)
    ]
    assert gains[0] >= 0.9 * (found.model_speedup_limit - 1) > gains[1]


def test_decode_counts_the_cache_of_keys_and_values():
    found = fff.estimate("gpt2", context=100, batch=3, phase="decode", dtype="float16").to_dict()
    assert found["memory_bytes"]["keys_and_values"] == 2 * 12 * 768 * 100 * 3 * 2
    assert found["tokens_per_pass"] == 3


def test_training_counts_three_passes_and_the_teacher():
    found = fff.estimate("bert-base", train_tokens=10**6, hardware="a100").to_dict()
    training, macs = found["training"], found["macs_per_token"]["total"]
    assert training["dense_flops"] == pytest.approx(6e6 * macs)
    assert training["distillation_flops"] == pytest.approx(training["converted_flops"] + 2e6 * macs)
    assert training["dense_gpu_hours"] == pytest.approx(training["dense_flops"] / (0.4 * 19.5e12 * 3600))


def test_work_of_each_phase():
    work = Workload(3, 7, Phase.DECODE, Stream.DECODER)
    assert [work.computed(stream) for stream in Stream] == [0, 3, 0, 1]
    assert [Workload(3, 7).computed(stream) for stream in Stream] == [21, 21, 3, 1]
