"""Image, speech and mixed models."""

from __future__ import annotations

from zoo.case import Case, Inputs, hf, image, integers, normal, plain, waveform

VIT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 20,
    "patch_size": 4,
}
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
]
