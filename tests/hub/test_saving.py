"""Every way in which a model that holds FFF layers is saved: read back equal, or stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizer, PreTrainedModel
from zoo import ARCHITECTURES

import fffconvert as fff
from fffconvert import surgery
from fffconvert.errors import FFFError
from fffconvert.hub import FFFConfig, mark_converted
from fffconvert.location import locate
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer

IDS = torch.arange(20).view(2, 10)
Convert = Callable[..., PreTrainedModel]
ANOTHER_POSITION = ["llama", "bart"]


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS)[0]


def layers(model: nn.Module) -> int:
    return sum(isinstance(module, FFFLayer) for module in model.modules())


class Wrap(PreTrainedModel):
    """Somebody's model around another one."""

    config_class = BertConfig
    _supports_sdpa = True

    def __init__(self, config: BertConfig, encoder: BertModel | None = None) -> None:
        super().__init__(config)
        self.encoder = BertModel(config) if encoder is None else encoder
        self.score = nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.score(self.encoder(input_ids).last_hidden_state),)


class TestWhoeverIsSaved:
    def test_the_model_around_the_converted_one(
        self, bert: PreTrainedModel, to_converted: Convert, tmp_path: Path
    ):
        to_converted(bert.bert)
        bert.save_pretrained(tmp_path)
        read = BertForMaskedLM.from_pretrained(tmp_path)
        assert layers(read) == 2
        assert torch.equal(logits(read), logits(bert))

    @pytest.mark.parametrize("name", ANOTHER_POSITION)
    def test_the_same_where_blocks_sit_otherwise(self, name: str, to_converted: Convert, tmp_path: Path):
        model = next(case for case in ARCHITECTURES if case.name == name).build()
        to_converted(model.get_submodule(model.base_model_prefix))
        model.save_pretrained(tmp_path)
        read = type(model).from_pretrained(tmp_path)
        assert torch.equal(logits(read), logits(model))

    def test_a_wrapper(self, bert: PreTrainedModel, to_converted: Convert, tmp_path: Path):
        wrapped = Wrap(bert.config, to_converted(bert.bert)).eval()
        wrapped.save_pretrained(tmp_path)
        assert torch.equal(logits(Wrap.from_pretrained(tmp_path)), logits(wrapped))

    def test_a_converted_wrapper_and_the_model_inside(
        self, bert: PreTrainedModel, to_converted: Convert, tmp_path: Path
    ):
        wrapped = to_converted(Wrap(bert.config).eval())
        wrapped.encoder.save_pretrained(tmp_path)
        assert torch.equal(logits(BertModel.from_pretrained(tmp_path)), logits(wrapped.encoder))

    def test_a_model_into_which_converted_layers_were_moved(
        self, bert: PreTrainedModel, to_converted: Convert, tmp_path: Path
    ):
        other = BertForMaskedLM(bert.config).eval()
        other.bert.encoder.layer[1] = to_converted(bert).bert.encoder.layer[1]
        other.save_pretrained(tmp_path)
        plan = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["modules"]
        assert list(plan) == ["bert.encoder.layer.1.intermediate.dense"]
        assert torch.equal(logits(BertForMaskedLM.from_pretrained(tmp_path)), logits(other))

    def test_a_dense_model_built_from_a_converted_one_s_config(
        self, bert: PreTrainedModel, to_converted: Convert, tmp_path: Path
    ):
        dense = BertForMaskedLM(to_converted(bert).config).eval()
        dense.save_pretrained(tmp_path)
        assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
        assert isinstance(bert.config.quantization_config, FFFConfig)
        assert torch.equal(logits(BertForMaskedLM.from_pretrained(tmp_path)), logits(dense))

    @pytest.mark.parametrize("whole", [False, True], ids=["the model inside", "the whole pipeline"])
    def test_a_sentence_encoder(self, whole: bool, folder: Path, to_converted: Convert, tmp_path: Path):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123))]
        BertTokenizer({word: number for number, word in enumerate(words)}).save_pretrained(folder)
        encoder = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(24)], device="cpu")
        if whole:
            block = {"input": {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}}
            to_converted(encoder, example_inputs=block)
        else:
            to_converted(encoder[0].auto_model)
        encoder.save(str(tmp_path / "encoder"))
        read = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
        assert layers(read) == 2
        assert (read.encode(["a b c", "x y"]) == encoder.encode(["a b c", "x y"])).all()


class TestAdapters:
    CONFIG = LoraConfig(target_modules=["query"])

    def trained(self, model: PeftModel) -> PeftModel:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        return model.eval()

    @pytest.mark.parametrize("order", ["converted first", "adapted first"])
    def test_merged_into_the_model(
        self, order: str, bert: PreTrainedModel, to_converted: Convert, tmp_path: Path
    ):
        if order == "converted first":
            model = self.trained(get_peft_model(to_converted(bert), self.CONFIG))
        else:
            model = self.trained(to_converted(get_peft_model(bert, self.CONFIG)))
        expected = logits(model)
        merged = model.merge_and_unload()
        merged.save_pretrained(tmp_path)
        read = BertForMaskedLM.from_pretrained(tmp_path)
        assert layers(read) == 2
        torch.testing.assert_close(logits(read), expected)
        assert torch.equal(logits(read), logits(merged))

    def test_saved_beside_the_model(self, bert: PreTrainedModel, to_converted: Convert, tmp_path: Path):
        to_converted(bert).save_pretrained(tmp_path / "base")
        model = self.trained(get_peft_model(bert, self.CONFIG))
        model.save_pretrained(tmp_path / "adapter")
        base = BertForMaskedLM.from_pretrained(tmp_path / "base")
        read = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert torch.equal(logits(read), logits(model))

    def test_an_adapter_of_transformers_own_is_saved_alone(
        self, bert: PreTrainedModel, to_converted: Convert, tmp_path: Path
    ):
        to_converted(bert).add_adapter(self.CONFIG)
        bert.save_pretrained(tmp_path)
        saved = load_file(tmp_path / "adapter_model.safetensors")
        assert saved
        assert all("lora" in name for name in saved)


class TestStateDict:
    def test_the_one_given_is_saved(self, bert: PreTrainedModel, to_converted: Convert, tmp_path: Path):
        half = {name: tensor * 0.5 for name, tensor in to_converted(bert).state_dict().items()}
        bert.save_pretrained(tmp_path, state_dict=half)
        read = BertForMaskedLM.from_pretrained(tmp_path).state_dict()
        assert read.keys() == half.keys()
        assert all(torch.equal(read[name], half[name]) for name in half)
        assert all(tensor.numel() for tensor in half.values())  # the caller's own is left alone

    def test_is_read_with_the_config_of_the_model_it_is_of(
        self, bert: PreTrainedModel, to_converted: Convert
    ):
        state = to_converted(bert).state_dict()
        read = BertForMaskedLM.from_pretrained(None, config=bert.config, state_dict=state).eval()
        assert torch.equal(logits(read), logits(bert))

    def test_weights_of_the_dense_model_are_refused_with_that_config(
        self, folder: Path, bert: PreTrainedModel, to_converted: Convert
    ):
        with pytest.raises(FFFError, match="does not hold"):
            BertForMaskedLM.from_pretrained(folder, config=to_converted(bert).config)

    def test_a_plain_model_does_not_take_it(self, bert: PreTrainedModel, to_converted: Convert):
        plain = BertForMaskedLM(bert.config)
        state = to_converted(bert).state_dict()
        with pytest.raises(RuntimeError, match="Missing key"):
            plain.load_state_dict(state)


@pytest.mark.parametrize("part", ["text_model", "vision_model"])
def test_half_of_a_model_of_two(part: str, to_converted: Convert, tmp_path: Path):
    model = next(case for case in ARCHITECTURES if case.name == "clip").build()
    to_converted(model.get_submodule(part))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    read = type(model).from_pretrained(tmp_path)
    assert layers(read) == layers(model) > 0
    state = read.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


class TestWholeModules:
    def test_a_model_that_attends_in_bfloat16(
        self, bert: PreTrainedModel, to_converted: Convert, tmp_path: Path
    ):
        from fffconvert.hub.attention import use_bfloat16_attention

        assert use_bfloat16_attention(to_converted(bert))
        torch.save((bert, logits(bert)), tmp_path / "model.pt")
        script = (
            "import sys, torch; torch.set_num_threads(1);"  # sums round otherwise with another number
            "model, expected = torch.load(sys.argv[1], weights_only=False);"
            "print(torch.equal(model(input_ids=torch.arange(20).view(2, 10))[0], expected))"
        )
        command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "model.pt")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout == "True\n", done.stderr

    @pytest.mark.parametrize("name", ANOTHER_POSITION)
    def test_can_be_saved_after_they_were_read(self, name: str, to_converted: Convert, tmp_path: Path):
        model = to_converted(next(case for case in ARCHITECTURES if case.name == name).build())
        torch.save(model, tmp_path / "model.pt")
        read = torch.load(tmp_path / "model.pt", weights_only=False)
        read.save_pretrained(tmp_path / "folder")
        again = type(model).from_pretrained(tmp_path / "folder")
        assert torch.equal(logits(again), logits(model))


class TestRefused:
    def test_a_module_that_no_config_describes(self, bert: PreTrainedModel, tmp_path: Path):
        fff.replace(bert, {site: nn.Linear(24, 24) for site in locate(bert)[:1]})
        with pytest.raises(FFFError, match=r"layer\.0.* stands a Linear.*torch\.save"):
            bert.save_pretrained(tmp_path)

    def test_the_same_where_it_is_the_block_itself(self, tmp_path: Path):
        model = next(case for case in ARCHITECTURES if case.name == "llama").build()
        fff.replace(model, {site: site.dense() for site in locate(model)})
        with pytest.raises(FFFError, match="stands a DenseBlock"):
            model.save_pretrained(tmp_path)

    def test_a_layer_put_in_by_hand(self, tmp_path: Path):
        model = next(case for case in ARCHITECTURES if case.name == "llama").build()
        width = model.config.hidden_size
        model.model.layers[0].mlp = FFFLayer(FFFSpec(width, width, 1))
        with pytest.raises(FFFError, match=r"layers\.0\.mlp was put in by hand"):
            model.save_pretrained(tmp_path)


def test_what_is_noted_keeps_the_name_of_the_original(bert: PreTrainedModel, to_converted: Convert):
    to_converted(bert.bert)
    mark_converted(bert)
    assert bert.config.quantization_config.base_model == "somebody/original"
    assert set(bert.config.quantization_config.modules) == set(surgery.layers_of(bert))
