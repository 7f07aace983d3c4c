"""`example_inputs` on tiny models of every modality: what it makes, and that the model takes it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from fffconvert.errors import FFFError
from fffconvert.location.inputs import example_inputs

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 99,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {**TEXT, "image_size": 32, "patch_size": 8}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "bos_token_id": 98, "eos_token_id": 98}
BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 99,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}


def llava() -> nn.Module:
    config = tf.LlavaConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "clip_vision_model", **VISION},
        image_token_id=98,
    )
    return tf.LlavaForConditionalGeneration(config)


def qwen2_vl() -> nn.Module:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = tf.Qwen2VLConfig(
        text_config={**TEXT, "num_key_value_heads": 2, "rope_parameters": rope},
        vision_config={"embed_dim": 32, "depth": 2, "num_heads": 4, "hidden_size": 32, "patch_size": 4},
        image_token_id=95,
        video_token_id=96,
        vision_start_token_id=97,
        vision_end_token_id=98,
    )
    return tf.Qwen2VLModel(config)


def wav2vec2() -> nn.Module:
    convolutions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "conv_dim": [8] * 7}
    return tf.Wav2Vec2Model(tf.Wav2Vec2Config(**TEXT, **convolutions))


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, ...]]]] = {
    "bert": (
        lambda: tf.BertModel(tf.BertConfig(**TEXT)),
        {"input_ids": (2, 13), "attention_mask": (2, 13)},
    ),
    "bert for multiple choice": (
        lambda: tf.BertForMultipleChoice(tf.BertConfig(**TEXT)),
        {"input_ids": (2, 2, 13), "attention_mask": (2, 2, 13)},
    ),
    "gpt2": (
        lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2)),
        {"input_ids": (2, 13), "attention_mask": (2, 13)},
    ),
    "gpt2 for classification, no padding": (
        lambda: tf.GPT2ForSequenceClassification(tf.GPT2Config(**GPT2)),
        {"input_ids": (1, 13), "attention_mask": (1, 13)},
    ),
    "t5": (
        lambda: tf.T5Model(
            tf.T5Config(d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4, vocab_size=99)
        ),
        {"input_ids": (2, 13), "attention_mask": (2, 13), "decoder_input_ids": (2, 11)},
    ),
    "bart for classification": (
        lambda: tf.BartForSequenceClassification(tf.BartConfig(**BART)),
        {"input_ids": (2, 13), "attention_mask": (2, 13)},
    ),
    "layoutlm": (
        lambda: tf.LayoutLMModel(tf.LayoutLMConfig(**TEXT)),
        {"input_ids": (2, 13), "attention_mask": (2, 13), "bbox": (2, 13, 4)},
    ),
    "vit": (
        lambda: tf.ViTModel(tf.ViTConfig(**VISION)),
        {"pixel_values": (2, 3, 32, 32)},
    ),
    "swin": (
        lambda: tf.SwinModel(
            tf.SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], image_size=32, window_size=4)
        ),
        {"pixel_values": (2, 3, 32, 32)},
    ),
    "vivit": (
        lambda: tf.VivitModel(tf.VivitConfig(**VISION, num_frames=4, tubelet_size=[2, 8, 8])),
        {"pixel_values": (2, 4, 3, 32, 32)},
    ),
    "clip": (
        lambda: tf.CLIPModel(tf.CLIPConfig(text_config=TEXT, vision_config=VISION)),
        {"input_ids": (2, 13), "attention_mask": (2, 13), "pixel_values": (2, 3, 32, 32)},
    ),
    "llava": (
        llava,
        {"input_ids": (2, 13 + 16), "attention_mask": (2, 13 + 16), "pixel_values": (2, 3, 32, 32)},
    ),
    "qwen2-vl": (
        qwen2_vl,
        {
            "input_ids": (2, 13 + 6 + 2),
            "attention_mask": (2, 13 + 6 + 2),
            "mm_token_type_ids": (2, 13 + 6 + 2),
            "pixel_values": (2 * 4 * 6, 3 * 2 * 4 * 4),
            "image_grid_thw": (2, 3),
        },
    ),
    "wav2vec2": (wav2vec2, {"input_values": (2, 27 * 320)}),
    "whisper": (
        lambda: tf.WhisperModel(tf.WhisperConfig(**BART, max_source_positions=20)),
        {"input_features": (2, 80, 40), "decoder_input_ids": (2, 11)},
    ),
    "audio spectrogram": (
        lambda: tf.ASTModel(tf.ASTConfig(**TEXT, max_length=40, num_mel_bins=24)),
        {"input_values": (2, 40, 24)},
    ),
    "time series": (
        lambda: tf.PatchTSTModel(
            tf.PatchTSTConfig(d_model=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4)
        ),
        {"past_values": (2, 32, 1)},
    ),
}
case = pytest.mark.parametrize(("build", "shapes"), CASES.values(), ids=CASES)


@case
def test_makes_what_the_model_takes(build: Callable[[], nn.Module], shapes: dict[str, tuple[int, ...]]):
    model = build().eval()
    inputs = example_inputs(model)
    assert {name: tuple(value.shape) for name, value in inputs.items()} == shapes
    with torch.no_grad():
        outputs = model(**inputs)
    assert all(value.isfinite().all() for value in outputs.values() if isinstance(value, Tensor))


@case
def test_is_the_same_every_time_and_leaves_the_global_generator_alone(
    build: Callable[[], nn.Module], shapes: Any
):
    model = build()
    state = torch.get_rng_state()
    first, second = example_inputs(model), example_inputs(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "layoutlm"])
def test_tokens_are_distinct_and_none_is_special(name: str):
    model = CASES[name][0]()
    config = model.config
    tokens = example_inputs(model)["input_ids"]
    if config.is_encoder_decoder:
        assert (tokens[:, -1] == config.eos_token_id).all()
        tokens = tokens[:, :-1]
    assert len(tokens.unique()) == tokens.numel()
    assert 0 <= tokens.min()
    assert tokens.max() < config.vocab_size
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
    assert not special & set(tokens.flatten().tolist())


def test_a_small_vocabulary_repeats_tokens():
    model = tf.BertModel(tf.BertConfig(**{**TEXT, "vocab_size": 7}))
    assert set(example_inputs(model)["input_ids"].flatten().tolist()) == {3, 4, 5, 6}


def test_boxes_are_boxes():
    bbox = example_inputs(CASES["layoutlm"][0]())["bbox"]
    assert (bbox[..., :2] <= bbox[..., 2:]).all()
    assert 0 <= bbox.min()
    assert bbox.max() < 1024


@pytest.mark.parametrize(
    ("build", "placeholder", "features"), [(llava, 98, 16), (qwen2_vl, 95, 6)], ids=["llava", "qwen2-vl"]
)
def test_text_holds_a_placeholder_for_every_feature_of_an_image(
    build: Callable[[], nn.Module], placeholder: int, features: int
):
    tokens = example_inputs(build())["input_ids"]
    assert ((tokens == placeholder).sum(1) == features).all()


def test_changes_the_outputs_of_both_towers():
    """The image reaches the text: other pixels, other logits."""
    model = llava().eval()
    inputs = example_inputs(model)
    with torch.no_grad():
        one, other = model(**inputs), model(**{**inputs, "pixel_values": inputs["pixel_values"] + 1})
    assert not torch.allclose(one.logits, other.logits)


@pytest.mark.parametrize("name", ["vit", "clip", "wav2vec2", "whisper", "time series"])
def test_follows_the_dtype_of_the_model(name: str):
    inputs = example_inputs(CASES[name][0]().to(torch.bfloat16))
    floats = [value for value in inputs.values() if value.is_floating_point()]
    assert floats
    assert all(value.dtype == torch.bfloat16 for value in floats)


@pytest.mark.parametrize("name", ["bert", "layoutlm", "clip", "whisper"])
def test_follows_the_device_of_the_model(name: str):
    inputs = example_inputs(CASES[name][0]().to("meta"))
    assert all(value.device.type == "meta" for value in inputs.values())


def test_leaves_every_module_in_its_mode():
    model = llava().train()
    model.model.vision_tower.eval()
    modes = [module.training for module in model.modules()]
    example_inputs(model)
    assert [module.training for module in model.modules()] == modes


class Riddle(nn.Module):
    """A model with a config whose forward takes something unheard of."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, riddle: Tensor, input_ids: Tensor | None = None) -> Tensor:
        return riddle


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 4), r"Linear has no transformers config .* pass example_inputs"),
        (Riddle(SimpleNamespace(vocab_size=9)), r"Riddle has no transformers config .* pass example_inputs"),
        (
            Riddle(tf.BertConfig()),
            r"no example can be guessed for riddle of Riddle\.forward; pass example_inputs",
        ),
    ],
    ids=["no config", "another config", "unknown parameter"],
)
def test_says_what_it_cannot_guess(model: nn.Module, message: str):
    with pytest.raises(FFFError, match=message):
        example_inputs(model)


def test_says_when_the_model_refuses_its_guess():
    model = llava()
    model.model.vision_tower = nn.Identity()
    with pytest.raises(FFFError, match=r"get_image_features of LlavaFor\w+ refuses .* pass example_inputs"):
        example_inputs(model)


def test_sizes_can_be_chosen():
    model = tf.BartForConditionalGeneration(tf.BartConfig(**BART))
    inputs = example_inputs(model, batch=3, length=5, decoder_length=7)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (3, 5)
    assert inputs["decoder_input_ids"].shape == (3, 7)
