"""What the generic shrinking of `shrink.py` cannot know, by config type."""

from __future__ import annotations

from typing import Any

CLASSES: dict[str, str] = {"voxtral_realtime_text": "VoxtralRealtimeTextForCausalLM"}
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
    return {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False, "backbone_config": _resnet(*stages)}


OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["detr", "conditional_detr", "dab-detr", "table-transformer"], _backbone("stage4")),
    "deformable_detr": _backbone("stage2", "stage3", "stage4"),
    **dict.fromkeys(["qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "qwen2_5_omni_talker", "paddleocr_vl_text", "glm4v_text", "glm_ocr_text", "glm_image_text", "cosmos3_edge_text"], {"rope_parameters": _rope(2, 3, 3)}),
    **dict.fromkeys(["qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker", "paddleocr_vl", "glm4v", "glm46v", "glm_ocr", "glm_image", "cosmos3_edge"], {"text_config.rope_parameters": _rope(2, 3, 3)}),
    "glm4v_moe_text": {"rope_parameters": _rope(1, 1, 2, partial_rotary_factor=0.5)},
    "glm4v_moe": {"text_config.rope_parameters": _rope(1, 1, 2, partial_rotary_factor=0.5)},
    **dict.fromkeys(["autoformer", "informer", "time_series_transformer"], {"prediction_length": 5, "num_time_features": 1}),
    **dict.fromkeys(["bamba", "falcon_h1", "granitemoehybrid"], {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128}),
    "mamba2": {"num_heads": 8},
    "aria": {"projector_patch_to_query_dict": {64: 5}},
    **dict.fromkeys(["blip-2", "instructblip", "instructblipvideo"], {"image_token_index": 98}),
    **dict.fromkeys(["voxtral", "glmasr"], {"audio_config.intermediate_size": 256}),
    "lilt": {"hidden_size": 96},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8},
    **dict.fromkeys(["llava_next", "llava_next_video", "granite4_vision"], {"image_grid_pinpoints": [[64, 128], [128, 64]]}),
    **dict.fromkeys(["hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl_text", "ministral"], {"head_dim": 16}),
    "hunyuan_vl": {"text_config.head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "zamba2": {"num_hidden_layers": 4},
    "esm": {"vocab_size": 99},
    "reformer": {"axial_pos_embds_dim": [24, 40], "axial_pos_shape": [4, 8]},
    "dots1": {"moe_intermediate_size": 96, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
}
"""Fields by dotted name, e.g. `text_config.hidden_size`."""
