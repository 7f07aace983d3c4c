"""Image, speech and mixed models."""

from __future__ import annotations

import torch

from zoo.case import Case, Inputs, gated, hf, image, integers, normal, plain, waveform

VIT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 20,
    "patch_size": 4,
}
VIT_RATIO = {name: value for name, value in VIT.items() if name != "intermediate_size"}
TOWERS = {
    "text_config": {
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "vision_config": VIT | {"hidden_size": 28, "intermediate_size": 52},
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 6,
    "hidden_sizes": [8, 10],
    "depths": [1, 1],
    "out_features": ["stage2"],
}
WAV2VEC2 = {
    "vocab_size": 31,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "conv_dim": (14, 18),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
GELU = (plain(2, 24, 40, "gelu"),)


def image_text() -> Inputs:
    return {"input_ids": integers(2, 7), "pixel_values": normal(2, 3, 20, 20)}


VISION_SPEECH: list[Case] = [
    hf("vit", "ViTModel", GELU, image(), **VIT),
    hf("deit", "DeiTForImageClassification", GELU, image(), **VIT, num_labels=24),
    hf(
        "swin",
        "SwinModel",
        [plain(2, 12, 36, "gelu"), plain(2, 24, 72, "gelu")],
        image(24),
        image_size=24,
        patch_size=2,
        embed_dim=12,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=3,
        mlp_ratio=3.0,
    ),
    hf(
        "clip",
        "CLIPModel",
        [plain(2, 24, 40, "quick_gelu"), plain(2, 28, 52, "quick_gelu")],
        image_text,
        **TOWERS,
    ),
    # The third vision block is in the attention pooling head, which adds it to its input like a layer does.
    hf(
        "siglip",
        "SiglipModel",
        [plain(2, 24, 40, "gelu_tanh"), plain(3, 28, 52, "gelu_tanh")],
        image_text,
        text_config=TOWERS["text_config"] | {"projection_size": 28},
        vision_config=TOWERS["vision_config"],
    ),
    hf("wav2vec2", "Wav2Vec2ForCTC", GELU, waveform, **WAV2VEC2),
    hf(
        "hubert",
        "HubertModel",
        GELU,
        waveform,
        **WAV2VEC2,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
    ),
    hf("beit", "BeitForImageClassification", GELU, image(), **VIT, use_relative_position_bias=True),
    hf("data2vec-vision", "Data2VecVisionModel", GELU, image(), **VIT),
    hf("dinov2", "Dinov2Model", [plain(2, 24, 72, "gelu")], image(), **VIT_RATIO, mlp_ratio=3),
    hf(
        "dinov2-swiglu",
        "Dinov2Model",
        [gated(2, 24, 48, "silu")],
        image(),
        **VIT_RATIO,
        mlp_ratio=3,
        use_swiglu_ffn=True,
    ),
    # Each block reads the depthwise convolution of what it is added to.
    hf(
        "convnext",
        "ConvNextModel",
        [plain(2, 12, 48, "gelu"), plain(2, 20, 80, "gelu")],
        image(24),
        num_stages=2,
        hidden_sizes=[12, 20],
        depths=[2, 2],
    ),
    hf(
        "segformer",
        "SegformerForImageClassification",
        (),
        image(32),
        num_encoder_blocks=2,
        depths=[2, 1],
        hidden_sizes=[12, 20],
        sr_ratios=[2, 1],
        patch_sizes=[3, 3],
        strides=[4, 2],
        num_attention_heads=[2, 2],
        mlp_ratios=[3, 3],
        decoder_hidden_size=28,
        refused=[("mlp", "convolution")],
    ),
    hf(
        "pixtral",
        "PixtralVisionModel",
        [gated(2, 24, 40, "silu")],
        image(),
        **VIT,
        hidden_act="silu",
        head_dim=12,
    ),
    hf(
        "timesformer",
        "TimesformerModel",
        GELU,
        lambda: {"pixel_values": normal(2, 3, 3, 20, 20)},
        **VIT,
        num_frames=3,
    ),
    hf(
        "perceiver",
        "PerceiverModel",
        [plain(1, 24, 48, "gelu"), plain(2, 24, 72, "gelu")],
        lambda: {"inputs": normal(2, 7, 20)},
        d_model=20,
        d_latents=24,
        num_latents=5,
        num_self_attends_per_block=2,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
        cross_attention_widening_factor=2,
        self_attention_widening_factor=3,
    ),
    hf(
        "vilt",
        "ViltModel",
        GELU,
        lambda: image_text() | {"pixel_mask": torch.ones(2, 20, 20, dtype=torch.long)},
        **VIT,
        vocab_size=61,
        max_position_embeddings=32,
    ),
    hf(
        "blip",
        "BlipForConditionalGeneration",
        [plain(2, 24, 40, "gelu"), plain(2, 28, 52, "gelu")],
        image_text,
        text_config=TOWERS["text_config"] | {"encoder_hidden_size": 28, "sep_token_id": 2},
        vision_config=TOWERS["vision_config"],
        image_text_hidden_size=20,
    ),
    hf(
        "detr",
        "DetrForObjectDetection",
        [plain(2, 24, 40, "relu"), plain(2, 24, 56, "relu")],
        image(64),
        d_model=24,
        encoder_layers=2,
        encoder_ffn_dim=40,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=56,
        decoder_attention_heads=2,
        num_queries=5,
        backbone_config=RESNET,
    ),
    hf("wavlm", "WavLMForCTC", GELU, waveform, **WAV2VEC2, num_buckets=8, max_bucket_distance=16),
    hf(
        "wav2vec2-conformer",
        "Wav2Vec2ConformerModel",
        [plain(4, 24, 40, "gelu")],
        waveform,
        **WAV2VEC2,
        conv_depthwise_kernel_size=5,
        random="batch normalisation",
    ),
]
