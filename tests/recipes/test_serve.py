from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import fffconvert as fff

SERVE = Path(__file__).parents[2] / "recipes" / "serve"
sentence_transformers = pytest.importorskip("sentence_transformers")
testclient = pytest.importorskip("fastapi.testclient")


@pytest.fixture(scope="module")
def recipe():
    sys.path.insert(0, str(SERVE))
    yield importlib.import_module("app"), importlib.import_module("load")
    sys.path.remove(str(SERVE))


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    """A tiny sentence encoder, converted and deployed with int8 linear maps."""
    words = ["[UNK]", "[PAD]", *recipe[1].WORDS]
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64
    )
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=1,
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    batch = {"input_ids": torch.randint(0, len(words), (8, 32))}
    fff.convert(model, depth=2, trunk=8, calibration=[batch] * 4, example_inputs=batch)
    path = tmp_path_factory.mktemp("serve")
    model.save_pretrained(path / "fff")
    tokenizer.save_pretrained(path / "fff")
    fff.deploy(str(path / "fff"), output=path / "deployed", max_drop=1.0)
    return path / "deployed"


def test_drops_into_code_that_uses_sentence_transformers_or_a_pipeline(folder):
    encoder = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    texts = ["the cat sleeps", "the old dog runs under the river"]
    embeddings = encoder.encode(texts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    torch.testing.assert_close(torch.from_numpy(embeddings), (hidden * mask).sum(1) / mask.sum(1))
    extract = transformers.pipeline("feature-extraction", model=str(folder), tokenizer=tokenizer)
    assert len(extract("the cat sleeps")[0][0]) == 64


def test_stands_concurrent_load_without_error_or_growth(recipe, folder):
    app, load = recipe
    with testclient.TestClient(app.create_app(str(folder))) as client:
        report = load.load(
            lambda path, document: client.post(path, json=document).raise_for_status().json(),
            lambda path: client.get(path).raise_for_status().json(),
            seconds=4,
            clients=4,
        )
    assert report.failures == []
    assert len(report.latencies) >= 4  # each client was served
    assert not report.grown, report.lines()
    assert "0 failures" in report.lines()[-1]


def test_the_load_test_sees_wrong_answers_and_errors(recipe):
    load = recipe[1]
    answers, memory = iter(range(10**9)), iter([100.0, 110.0])

    def post(path, document):
        if (count := next(answers)) > load.SENTENCES + 4:
            raise RuntimeError("out of order")
        return {"embeddings": [[1.0, float(count)] for _ in document["sentences"]]}

    report = load.load(post, lambda path: {"memory_mb": next(memory)}, seconds=0.2, clients=2)
    assert any("differs" in text for text in report.failures)
    assert any("out of order" in text for text in report.failures)
    assert report.grown


def test_converting_keeps_how_sentences_are_pooled(tmp_path):
    from fffconvert.hub.output import _copy_sentence_transformers

    original, output = tmp_path / "original", tmp_path / "output"
    (original / "1_Pooling").mkdir(parents=True)
    output.mkdir()
    (original / "1_Pooling" / "config.json").write_text("{}")
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "../elsewhere"}]
    (original / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "elsewhere").mkdir()
    _copy_sentence_transformers(original, output)
    assert sorted(p.name for p in output.rglob("*")) == ["1_Pooling", "config.json", "modules.json"]
