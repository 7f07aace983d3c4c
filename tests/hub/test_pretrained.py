"""Reading pretrained models: the right class, the whole checkpoint, sound weights, or one clear line."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
    dynamic_module_utils,
)

from fffconvert.errors import FFFError
from fffconvert.hub import load, load_random

REMOTE_CODE = """
from pathlib import Path
import torch
from transformers import PreTrainedConfig, PreTrainedModel

Path({marker!r}).touch()

class OddConfig(PreTrainedConfig):
    model_type = "odd"

class OddModel(PreTrainedModel):
    config_class = OddConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(2, 2, bias=False)
        self.post_init()
"""


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_weights(folder: Path, **values: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    state = load_file(path) | values
    save_file({k: v for k, v in state.items() if v is not None}, path, {"format": "pt"})


@pytest.mark.parametrize("cls", [BertForMaskedLM, BertForSequenceClassification, BertModel])
@pytest.mark.parametrize("named", [True, False], ids=["named in the config", "told by its weights"])
def test_the_class_and_its_head_are_kept(bert: PreTrainedModel, tmp_path: Path, cls: type, named: bool):
    model = cls(bert.config)
    model.save_pretrained(tmp_path)
    if not named:
        edit_config(tmp_path, architectures=None)
    loaded = load(str(tmp_path))
    assert type(loaded.model) is cls
    assert not loaded.model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.model.get_parameter(name), parameter), name


@pytest.mark.parametrize("name", ["bert_of_old", "mobilebert-or-bert"])
def test_a_config_without_model_type_goes_by_its_class_or_by_the_folder(folder: Path, name: str):
    edit_config(folder, model_type=None)
    assert type(load(str(folder)).model) is BertForMaskedLM
    if name == "bert_of_old":
        edit_config(folder, architectures=None)
        assert type(load(str(folder.rename(folder.with_name(name)))).model) is BertForMaskedLM


def test_pickled_weights_are_read_but_never_run(folder: Path, bert: PreTrainedModel):
    (folder / "model.safetensors").unlink()
    torch.save(bert.state_dict(), folder / "pytorch_model.bin")
    assert torch.equal(load(str(folder)).model.cls.predictions.bias, bert.cls.predictions.bias)

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (folder / "ran",)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Attack()}, protocol=2))
    with pytest.raises(FFFError, match="hold code, not only tensors"):
        load(str(folder))
    assert not (folder / "ran").exists()


def test_the_tokenizer_comes_along_if_there_is_one(folder: Path):
    assert load(str(folder)).tokenizer is None
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"]))
    tokenizer = load(str(folder)).tokenizer
    assert isinstance(tokenizer, BertTokenizer)
    assert tokenizer.convert_ids_to_tokens(tokenizer("hello")["input_ids"]) == ["[CLS]", "hello", "[SEP]"]


def test_a_model_without_text_has_no_tokenizer(tmp_path: Path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(image_size=8, patch_size=4, **sizes)).save_pretrained(tmp_path)
    assert load(str(tmp_path)).tokenizer is None


def test_a_config_alone_gives_a_random_model(folder: Path):
    (folder / "model.safetensors").unlink()
    model = load_random(str(folder)).model
    assert type(model) is BertForMaskedLM
    assert model.dtype is torch.float32


def test_a_hub_id_is_read_at_the_revision_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From the hub's cache, as no network is needed for what was read before."""
    cache = tmp_path / "cache"
    repository = cache / "models--somebody--model"
    (repository / "refs").mkdir(parents=True)
    commits = {"main": "0" * 40, "v1": "1" * 40}
    for revision, commit in commits.items():
        (repository / "refs" / revision).write_text(commit)
        shutil.copytree(folder, repository / "snapshots" / commit)
    edit_weights(repository / "snapshots" / commits["v1"], **{"cls.predictions.bias": torch.ones(61)})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    assert load("somebody/model").model.cls.predictions.bias.sum() == 0
    assert load("somebody/model", revision="v1").model.cls.predictions.bias.sum() == 61
    with pytest.raises(FFFError, match="cannot read model somebody/model"):
        load("somebody/model", revision="v2")


def test_code_that_a_model_brings_runs_only_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "odd.py").write_text(REMOTE_CODE.format(marker=str(tmp_path / "ran")))
    auto_map = {"AutoConfig": "odd.OddConfig", "AutoModelForMaskedLM": "odd.OddModel"}
    config = {"model_type": "odd", "architectures": ["OddModel"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"linear.weight": torch.eye(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FFFError, match=r"brings its own code; .* `trust_remote_code=True`"):
        load(str(folder))
    assert not (tmp_path / "ran").exists()
    model = load(str(folder), trust_remote_code=True).model
    assert (tmp_path / "ran").exists()
    assert torch.equal(model.linear.weight, torch.eye(2))


def test_a_missing_pooler_is_only_warned_of(bert: PreTrainedModel, tmp_path: Path):
    BertModel(bert.config).save_pretrained(tmp_path)
    edit_weights(tmp_path, **{"pooler.dense.weight": None, "pooler.dense.bias": None})
    with pytest.warns(UserWarning, match="holds no pooler"):
        assert type(load(str(tmp_path)).model) is BertModel


def tiny(kind: str) -> transformers.PreTrainedConfig:
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    return getattr(transformers, f"{kind}Config")(**sizes, num_attention_heads=2)


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("Bert", "ForMaskedLM"),
        ("Bert", "ForSequenceClassification"),
        ("Roberta", "ForMaskedLM"),
        ("MPNet", "ForMaskedLM"),
        ("Llama", "ForSequenceClassification"),
        ("ViT", "ForImageClassification"),
    ],
)
def test_a_checkpoint_without_the_head_that_its_config_names_is_the_bare_model(
    tmp_path: Path, kind: str, head: str
):
    bare = getattr(transformers, f"{kind}Model")(tiny(kind))
    bare.save_pretrained(tmp_path / "bare")
    edit_config(tmp_path / "bare", architectures=[f"{kind}{head}"])
    with pytest.warns(UserWarning, match=f"the head of {kind}{head}.*loaded without, as {kind}Model"):
        loaded = load(str(tmp_path / "bare")).model
    assert type(loaded) is type(bare)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value) for name, value in bare.state_dict().items())
    loaded.save_pretrained(tmp_path / "again")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(load(str(tmp_path / "again")).model) is type(bare)


def test_a_head_of_which_a_part_is_missing_is_left_out(tmp_path: Path, bert: PreTrainedModel):
    BertForMaskedLM(bert.config).save_pretrained(tmp_path)
    edit_weights(tmp_path, **{"cls.predictions.transform.dense.weight": None})
    with pytest.warns(UserWarning, match="lacks 1 weights of the head of BertForMaskedLM"):
        assert type(load(str(tmp_path)).model) is BertModel


class TestRefused:
    """Each with one line that says what is wrong."""

    @pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model", "not a name"])
    def test_unknown_hub_id(self, name: str):
        self.check(name, f"cannot read model {name}: .*; give a hub id, a folder")

    @pytest.mark.parametrize("kept", [0, 4, 200, -1], ids=lambda kept: f"first {kept}")
    def test_truncated_safetensors(self, folder: Path, kept: int):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:kept])
        self.check(folder, "model.safetensors in .* is cut off or damaged")

    def test_folder_without_weights(self, folder: Path):
        (folder / "model.safetensors").unlink()
        self.check(folder, "holds a config but no weights")

    @pytest.mark.parametrize("text", ["{", "[]", '"bert"', "{}"])
    def test_malformed_config(self, folder: Path, text: str):
        (folder / "config.json").write_text(text)
        self.check(folder.rename(folder.with_name("x")), "cannot read model")

    def test_weights_of_another_shape(self, folder: Path):
        edit_config(folder, intermediate_size=48)
        self.check(folder, r"do not fit its config: .* has shape \[.*40.*\], expected \[.*48.*\]")

    def test_missing_weight(self, folder: Path):
        edit_weights(folder, **{"bert.encoder.layer.1.output.dense.weight": None})
        self.check(
            folder, "lacks 1 weights of BertForMaskedLM, bert.encoder.layer.1.output.dense.weight the first"
        )

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite(self, folder: Path, value: float):
        weight = torch.zeros(24, 40)
        weight[3, 5] = value
        edit_weights(folder, **{"bert.encoder.layer.1.output.dense.weight": weight})
        self.check(folder, "weight bert.encoder.layer.1.output.dense.weight of .* is NaN or infinite")

    def test_quantised_weights(self, folder: Path):
        edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
        self.check(folder, r"is quantised \(gptq\)")

    def check(self, name: str | Path, message: str) -> None:
        with pytest.raises(FFFError, match=message) as caught:
            load(str(name))
        assert "\n" not in str(caught.value)
