"""Real activations: of a dense model, to which a layer is fitted, and of a converted one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from fffconvert import surgery
from fffconvert.benchmarks import bench_layer
from fffconvert.benchmarks.settings import LayerBench
from fffconvert.benchmarks.workload import workloads
from fffconvert.errors import FFFError
from fffconvert.hub import mark_converted
from fffconvert.location import locate
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer

QUICK: dict[str, Any] = {
    "forests": ((1, 2),),
    "sizes": (3,),
    "backends": ("reference",),
    "dtypes": ("float32",),
    "compile": False,
    "seconds": 1e-3,
    "repeats": 3,
}
BLOCKS = [f"bert.encoder.layer.{n}.intermediate.dense" for n in range(2)]


@pytest.fixture
def bert() -> BertForMaskedLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForMaskedLM(BertConfig(vocab_size=40, **sizes)).eval()


def save(model: BertForMaskedLM, folder: Path) -> str:
    model.save_pretrained(folder)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    (folder / "vocab.txt").write_text("\n".join([*words, *(f"##{c}" for c in "etaoinsrh")]))
    return str(folder)


def test_a_dense_model_gives_blocks_and_inputs(bert, tmp_path):
    settings = LayerBench(**QUICK, model=save(bert, tmp_path), blocks=("layer.0",))
    drawn, real = workloads(settings)
    assert (drawn.inputs, drawn.d_hidden, drawn.pool) == ("random", 40, None)
    assert (real.inputs, real.d_hidden) == (BLOCKS[0], 40)
    block = bert.bert.encoder.layer[0]
    x = real.pool[:50]
    torch.testing.assert_close(real.block(x), block.output.dense(block.intermediate(x)))
    assert len(real.pool) >= 4096
    torch.testing.assert_close(x.mean(1), torch.zeros(50), rtol=0, atol=1e-5)  # they leave a layer norm


def test_rows_name_their_inputs(bert, tmp_path):
    found = bench_layer(save(bert, tmp_path), **QUICK)
    assert {row["inputs"] for row in found["rows"]} == {"random", BLOCKS[1]}
    assert {row["inputs"] for row in found["summary"]} == {"random", BLOCKS[1]}


def test_a_converted_model_gives_its_own_layers(bert, tmp_path):
    sites = list(locate(bert))
    layers = {site: FFFLayer(FFFSpec(16, 16, 3, trees=2, branch_outputs=True, trunk=1)) for site in sites}
    surgery.replace(bert, layers)
    mark_converted(bert, "original")
    model = save(bert, tmp_path)
    with pytest.raises(FFFError, match="give its width, as in `shape=16x64`"):
        list(workloads(LayerBench(**QUICK, model=model)))
    settings = LayerBench(**QUICK, shape=(16, 40), model=model)
    drawn, real = workloads(settings)
    assert (drawn.name, real.name) == ("1x2", "2x3")
    torch.testing.assert_close(real.layer.fff_out_weight, layers[sites[1]].fff_out_weight)
    assert real.bound(40) == pytest.approx(40 / 9)
    rows = bench_layer(model, **QUICK, shape=(16, 40))["rows"]
    assert {row["layer"] for row in rows} == {"1x2", "2x3"}


def test_another_shape_than_the_blocks_is_refused(bert, tmp_path):
    with pytest.raises(FFFError, match="the model's blocks are 16x40"):
        list(workloads(LayerBench(**QUICK, model=save(bert, tmp_path), shape=(16, 48))))


def test_without_a_tokenizer_there_is_no_text(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    with pytest.raises(FFFError, match="has no tokenizer"):
        list(workloads(LayerBench(**QUICK, model=str(tmp_path))))


def test_more_tokens_than_activations_is_refused(bert, tmp_path):
    *_, real = workloads(LayerBench(**QUICK, model=save(bert, tmp_path)))
    with pytest.raises(FFFError, match=f"`sizes` asks for {len(real.pool) + 1}"):
        real.batches(len(real.pool) + 1, seed=random.randint(0, 9))
