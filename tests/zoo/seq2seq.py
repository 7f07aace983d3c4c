"""Encoder-decoder language models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from zoo.case import Case, Expected, Inputs, gated, hf, integers, normal, plain, text_pair, waveform

BART = {
    "vocab_size": 61,
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_ffn_dim": 40,
    "encoder_attention_heads": 2,
    "decoder_layers": 2,
    "decoder_ffn_dim": 56,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
T5 = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
SPEECHT5 = {
    "hidden_size": 24,
    "conv_dim": (14, 18),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "max_speech_positions": 64,
    "max_text_positions": 32,
}
BOTH_RELU = (plain(2, 24, 40, "relu"), plain(2, 24, 56, "relu"))
BOTH = (plain(2, 24, 40, "gelu"), plain(2, 24, 56, "gelu"))


def seq2seq(
    name: str,
    model_class: str,
    blocks: Iterable[Expected],
    inputs: Callable[[], Inputs] = text_pair,
    **config: Any,
) -> Case:
    return hf(name, model_class, blocks, inputs, generate=True, **config)


def mel() -> Inputs:
    return {"input_features": normal(2, 10, 30), "decoder_input_ids": integers(2, 5)}


SEQ2SEQ: list[Case] = [
    seq2seq("t5", "T5ForConditionalGeneration", [plain(4, 24, 40, "relu")], **T5),
    seq2seq(
        "mt5",
        "MT5ForConditionalGeneration",
        [gated(4, 24, 40, "gelu_tanh")],
        **T5,
        feed_forward_proj="gated-gelu",
    ),
    seq2seq("bart", "BartForConditionalGeneration", BOTH, **BART),
    seq2seq("mbart", "MBartForConditionalGeneration", BOTH, **BART),
    seq2seq("pegasus", "PegasusForConditionalGeneration", BOTH, **BART),
    seq2seq("marian", "MarianMTModel", BOTH, **BART, decoder_vocab_size=61),
    seq2seq(
        "whisper",
        "WhisperForConditionalGeneration",
        BOTH,
        mel,
        **BART | {"num_mel_bins": 10, "max_source_positions": 15, "max_target_positions": 32},
        begin_suppress_tokens=None,
    ),
    seq2seq("m2m-100", "M2M100ForConditionalGeneration", BOTH_RELU, **BART),
    seq2seq(
        "led",
        "LEDForConditionalGeneration",
        BOTH,
        **BART,
        attention_window=4,
        max_encoder_position_embeddings=32,
        max_decoder_position_embeddings=32,
    ),
    seq2seq(
        "prophetnet",
        "ProphetNetForConditionalGeneration",
        BOTH,
        vocab_size=61,
        hidden_size=24,
        num_encoder_layers=2,
        encoder_ffn_dim=40,
        num_encoder_attention_heads=2,
        num_decoder_layers=2,
        decoder_ffn_dim=56,
        num_decoder_attention_heads=2,
        max_position_embeddings=32,
        decoder_start_token_id=1,
    ),
    seq2seq(
        "switch-transformers",
        "SwitchTransformersForConditionalGeneration",
        (),
        **T5,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        num_experts=4,
        router_jitter_noise=0.0,
        refused=[("experts", "expert")],
    ),
    seq2seq(
        "speecht5",
        "SpeechT5ForSpeechToText",
        BOTH,
        lambda: waveform() | {"decoder_input_ids": integers(2, 5)},
        **BART | SPEECHT5,
    ),
]
