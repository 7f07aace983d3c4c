"""What the generic shrinking of `shrink.py` cannot know, by config type."""

from __future__ import annotations

from typing import Any

CLASSES: dict[str, str] = {
    "speecht5": "SpeechT5ForSpeechToText",
    "musicgen": "MusicgenForConditionalGeneration",
    "musicgen_melody": "MusicgenMelodyForConditionalGeneration",
}
"""Classes for types whose AutoModel class is not the one to run."""


def _rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **more}


def _resnet(*stages: str) -> dict[str, Any]:
    return {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 16, 32, 32],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": list(stages),
    }


def _backbone(*stages: str) -> dict[str, Any]:
    return {
        "use_timm_backbone": False,
        "backbone": None,
        "use_pretrained_backbone": False,
        "backbone_config": _resnet(*stages),
    }


_BY_TYPES: list[tuple[str, dict[str, Any]]] = [
    (
        "rt_detr rt_detr_v2 d_fine deimv2 pp_doclayout_v3 pp_doclayout_v4",
        {"decoder_in_channels": [64, 64, 64]},
    ),
    ("zoedepth", {"bottleneck_features": 64}),
    ("bamba", {"mamba_n_heads": 8, "mamba_d_head": 16, "attn_layer_indices": [1]}),
    ("granitemoehybrid", {"mamba_n_heads": 8, "mamba_d_head": 16, "layer_types": ["mamba", "attention"]}),
    ("falcon_h1", {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128}),
    (
        "nemo_speechlm",
        {"text_config.mamba_num_heads": 8, "text_config.mamba_head_dim": 16, "text_config.n_groups": 2},
    ),
    ("hunyuan_vl_text", {"head_dim": 16, "rope_parameters": _rope(2, 2, 2, 2)}),
    ("hunyuan_vl", {"text_config.head_dim": 16, "text_config.rope_parameters": _rope(2, 2, 2, 2)}),
    ("vipllava", {"vision_feature_layers": [-2, -1]}),
    (
        "glmga qwen2_vl qwen2_5_vl glm4v glm46v glm_ocr cosmos3_edge",
        {"text_config.rope_parameters": _rope(2, 3, 3)},
    ),
    (
        "qwen4_exp",
        {
            "text_config.indexer_n_heads": 2,
            "text_config.indexer_kv_heads": 1,
            "text_config.indexer_head_dim": 16,
            "text_config.indexer_budget": 8,
            "text_config.indexer_compress_ratio": 2,
        },
    ),
    ("detr conditional_detr dab-detr table-transformer", _backbone("stage4")),
    ("deformable_detr", _backbone("stage2", "stage3", "stage4")),
    (
        "qwen2_vl_text qwen2_5_vl_text qwen2_5_omni_text qwen2_5_omni_talker "
        "paddleocr_vl_text glm4v_text glm_ocr_text glm_image_text cosmos3_edge_text",
        {"rope_parameters": _rope(2, 3, 3)},
    ),
    ("glm4v_moe_text", {"rope_parameters": _rope(1, 1, 2, partial_rotary_factor=0.5)}),
    ("glm4v_moe", {"text_config.rope_parameters": _rope(1, 1, 2, partial_rotary_factor=0.5)}),
    ("informer time_series_transformer", {"prediction_length": 5, "num_time_features": 1}),
    ("mamba2", {"num_heads": 8}),
    ("aria", {"projector_patch_to_query_dict": {64: 5}}),
    ("blip-2 instructblip", {"image_token_index": 98}),
    ("voxtral glmasr", {"audio_config.intermediate_size": 256, "audio_token_id": 98}),
    ("lilt", {"hidden_size": 96}),
    ("layoutlmv3", {"coordinate_size": 12, "shape_size": 8}),
    ("llava_next llava_next_video", {"image_grid_pinpoints": [[64, 128], [128, 64]]}),
    ("hunyuan_v1_dense hunyuan_v1_moe ministral", {"head_dim": 16}),
    ("nemotron", {"num_key_value_heads": 2}),
    ("gpt_neo", {"attention_types": [[["global", "local"], 1]]}),
    ("esm", {"vocab_size": 99, "pad_token_id": 1, "mask_token_id": 32}),
    ("efficientnet", {"hidden_dim": 2560}),
    (
        "jamba",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    ),
    ("recurrent_gemma", {"num_hidden_layers": 3}),
    (
        "clap",
        {
            "audio_config.num_hidden_layers": 4,
            "audio_config.hidden_size": 128,
            "audio_config.patch_embeds_hidden_size": 64,
        },
    ),
    (
        "clvp",
        {"text_config.hidden_size": 128, "speech_config.hidden_size": 128, "decoder_config.hidden_size": 128},
    ),
    ("clvp_encoder", {"hidden_size": 128}),
    ("granite_speech granite_speech_plus", {"window_size": 5}),
    ("pix2struct_vision_model kosmos_2_5_vision_model", {"patch_embed_hidden_size": 192}),
    ("pix2struct kosmos-2.5", {"vision_config.patch_embed_hidden_size": 192}),
    ("levit", {"patch_size": 16}),
    (
        "llama4_vision_model",
        {
            "intermediate_size": 256,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
            "vision_output_dim": 64,
        },
    ),
    (
        "llama4",
        {
            "vision_config.intermediate_size": 256,
            "vision_config.projector_input_dim": 64,
            "vision_config.projector_output_dim": 64,
            "vision_config.vision_output_dim": 64,
        },
    ),
    ("mask2former oneformer", {"feature_size": 64, "mask_feature_size": 64, "conv_dim": 64, "mask_dim": 64}),
    ("mllama_vision_model", {"intermediate_layers_indices": [0, 1], "vision_output_dim": 192}),
    ("mllama", {"vision_config.intermediate_layers_indices": [0, 1], "vision_config.vision_output_dim": 192}),
    ("nemotron_h", {"mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2}),
    ("qwen3_omni_moe_thinker", {"vision_start_token_id": 60}),
    ("qwen2_5_omni_thinker", {"vision_start_token_id": 60, "text_config.rope_parameters": _rope(2, 3, 3)}),
    (
        "sam sam_hq",
        {
            "vision_config.output_channels": 64,
            "vision_config.num_pos_feats": 32,
            "prompt_encoder_config.image_size": 64,
            "prompt_encoder_config.patch_size": 8,
            "prompt_encoder_config.image_embedding_size": 8,
            "mask_decoder_config.vit_dim": 64,
        },
    ),
    ("step3p5", {"sliding_window": 4}),
    ("step3p7", {"text_config.sliding_window": 4}),
    ("perceiver", {"d_latents": 64, "num_self_attends_per_block": 2}),
    ("xmod", {"default_language": "en_XX"}),
    ("dbrx", {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8}}),
    ("lfm2_moe", {"layer_types": ["conv", "full_attention"]}),
    ("ernie4_5_vl_moe_text", {"rope_parameters": _rope(3, 3, 2)}),
    ("ernie4_5_vl_moe", {"text_config.rope_parameters": _rope(3, 3, 2)}),
    ("gemma3n_text", {"num_kv_shared_layers": 0}),
    ("pocket_tts gradium_phonon_tts", {"flow_head_config.condition_dim": 64}),
    ("mimi pocket_tts_audio_tokenizer", {"upsample_groups": 16}),
    ("moonshine_streaming", {"num_key_value_heads": 4}),
    ("t5gemma2_encoder t5gemma2_text", {"dropout_rate": 0.0, "text_config.dropout_rate": 0.0}),
    ("pix2struct_text_model", {"initializer_range": 0.02}),
    ("dots3_note_vision_encoder", {"adapter_in_dim": 64}),
    (
        "qwen4_exp_text",
        {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
        },
    ),
    ("reformer", {"axial_pos_embds": False}),
    (
        "dots1",
        {"moe_intermediate_size": 96, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    ),
    ("deepseek_v2", {"num_experts_per_tok": 2}),
    ("slanet slanext", {"max_text_length": 5}),
    ("yolos", {"image_size": [64, 96]}),
]

OVERRIDES: dict[str, dict[str, Any]] = {name: fields for names, fields in _BY_TYPES for name in names.split()}
"""Fields by dotted name, e.g. `text_config.hidden_size`."""
