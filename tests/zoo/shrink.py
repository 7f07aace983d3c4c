"""A tiny random model of any config type that transformers has."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from zoo.overrides import CLASSES, OVERRIDES

WIDTH, INNER, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCABULARY = 64, 160, 4, 2, 16, 2, 99
TOKENS = 69  # special tokens above are renumbered from the end of the vocabulary

BOUNDS: dict[str, int] = {
    r"codebook_size": 64,
    r".*vocab_size.*": VOCABULARY,
    r".*(intermediate_size|intermediate_dim|ffn_dim|ff_dim|mlp_dim|ffn_size|hidden_size_mlp)": INNER,
    r"ffn_hidden_size|d_ff|n_inner|d_inner|dim_feedforward": INNER,
    r".*(hidden|embed|embedding|emb|projection|proj|output)_(size|dim)": WIDTH,
    r".*_d_model|.*cross_attention_dim": WIDTH,
    r"d_model|n_embd|dim|width": WIDTH,
    r".*(key_value_heads|kv_heads|n_head_kv)": KV_HEADS,
    r".*(attention_heads|num_heads|n_head|n_heads|heads)": HEADS,
    r".*(rope_head_dim|rotary_dim)": HEAD_DIM // 2,
    r"qk_head_dim": HEAD_DIM + HEAD_DIM // 2,
    r".*(head_dim|dim_head|head_size)|d_kv|attention_key_size": HEAD_DIM,
    r".*_rank": 16,
    r"((num|n)_)?(.*_)?(layers?|depth)|depth|n_blocks|num_blocks": LAYERS,
    r".*image_size|img_size": 64,
    r"patch_size": 8,
    r"(num|n)_(local_|routed_)?experts|moe_num_experts": 4,
    r"num_experts_per_tok(en)?|(moe_)?top_?k|moe_k": 2,
    r"n_group": 2,
    r"topk_group": 1,
    r"num_filters|n_filters": 4,
    r"sliding_window": 4,
    r"window_size": 2,
    r"mm_tokens_per_image": 4,
    r".*max_position_embeddings|n_positions|max_(source|target)_positions": 128,
    r"num_queries|num_query_tokens|num_latents": 5,
}
"""Upper bounds of numbers by the name of their field; the first pattern that matches holds."""
DEPTH = r"num_hidden_layers|n_layers?|num_layers|depth"
INDICES = r"(?!_?out_).*(_index(es)?|_indices|_idx|feature_layers?|layer_ids?)"
DEPTHS = r".*depths|.*num_blocks|blocks_per_stage|layers"


def all_model_types() -> list[str]:
    """Every config type of the installed transformers."""
    return list(CONFIG_MAPPING_NAMES)


def heads(model_type: str) -> dict[str, str]:
    """Names of the type's classes by the mapping that lists them: "" for AutoModel, CAUSAL_LM and so on."""
    found = {}
    for name in sorted(dir(modeling_auto), key=len):
        mapping = re.fullmatch(r"MODEL_(?:FOR_(\w+)_)?MAPPING_NAMES", name)
        if mapping and model_type in getattr(modeling_auto, name):
            classes = getattr(modeling_auto, name)[model_type]
            found[mapping[1] or ""] = classes if isinstance(classes, str) else classes[0]
    return found


def model_class(model_type: str) -> type[PreTrainedModel]:
    """AutoModel's class for the type; else one with a head; else the one whose config has this type."""
    if model_type in CLASSES:
        return getattr(transformers, CLASSES[model_type])
    named = heads(model_type)
    name = named.get("", next(iter(named.values()), ""))
    if hasattr(transformers, name):
        return getattr(transformers, name)
    config_class = CONFIG_MAPPING[model_type]
    module = importlib.import_module(config_class.__module__.replace(".configuration_", ".modeling_"))
    if hasattr(module, name):
        return getattr(module, name)
    classes = [
        cls
        for name, cls in vars(module).items()
        if inspect.isclass(cls)
        and issubclass(cls, PreTrainedModel)
        and cls.config_class is config_class
        and not name.endswith("PreTrainedModel")
    ]
    if not classes:
        raise LookupError("no model class")
    return min(classes, key=lambda cls: (not cls.__name__.endswith("Model"), len(cls.__name__)))


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The type's default config with every size small."""
    return _Shrinker(OVERRIDES.get(model_type, {})).shrink(CONFIG_MAPPING[model_type]())


def tiny_model(model_type: str) -> nn.Module:
    """A model with small random parameters, in eval mode; in train mode a run draws and keeps nothing."""
    torch.manual_seed(0)
    model = model_class(model_type)(tiny_config(model_type))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():  # a layer scale of 1e-6 would hide a wrong block
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


class _Shrinker:
    """Rebuilds configs from small values, special tokens renumbered alike in all of them."""

    def __init__(self, overrides: dict[str, Any]) -> None:
        self.overrides = overrides
        self.special: dict[int, int] = {}

    def shrink(self, config: PreTrainedConfig, path: str = "") -> PreTrainedConfig:
        given = {f.name: (_value(config, f.name), f.default) for f in dataclasses.fields(config) if f.init}
        depth = next((v for k, (v, _) in given.items() if re.fullmatch(DEPTH, k) and type(v) is int), 0)
        maps = list(getattr(config, "out_features", None) or [])
        kept = _kept_layers([v for v, _ in given.values() if _names(v) and len(v) == depth], depth, len(maps))
        values = {}
        for name, (value, default) in given.items():
            per_layer = isinstance(value, (list, tuple)) and len(value) == depth > len(kept)
            if isinstance(value, PreTrainedConfig):
                values[name] = self.shrink(value, f"{path}{name}.")
            elif per_layer and (default is not None or _names(value)):
                values[name] = type(value)(value[layer] for layer in kept)
            elif default is not None:  # what is None by default follows from the rest
                values[name] = self.shrunk(name, value, vars(config), len(kept))
        if maps:  # a backbone gives as many maps as before, even where its stages are its layers
            stages = list(config.stage_names)
            short = len(stages) == depth + 1 > len(kept) + 1
            values["out_features"] = stages[1 : len(kept) + 1][-len(maps) :] if short else maps
        if values.get("head_dim", HEAD_DIM) is None:
            values["head_dim"] = HEAD_DIM
        own = {key.removeprefix(path): value for key, value in self.overrides.items() if key.startswith(path)}
        return type(config)(**values | {key: value for key, value in own.items() if "." not in key})

    def shrunk(self, name: str, value: Any, config: dict[str, Any], layers: int) -> Any:
        if name == "apply_spec_augment" or (
            isinstance(value, float) and re.search("drop|mask_.*_prob", name)
        ):
            return type(value)(0)  # nothing random in train mode
        if type(value) is int:
            return self.number(name, value, config, layers)
        if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
            if re.fullmatch(INDICES, name):
                last = (layers or LAYERS) - 1
                return type(value)(dict.fromkeys(min(v, last) if v >= 0 else max(v, -LAYERS) for v in value))
            if re.fullmatch(DEPTHS, name):
                return type(value)(min(v, 1) for v in value)
        if name == "rope_parameters" and isinstance(value, dict):
            inner = {k: _rope(v, config) for k, v in value.items() if isinstance(v, dict)}
            return _rope(value, config) | inner
        return value

    def number(self, name: str, value: int, config: dict[str, Any], layers: int) -> int:
        if re.search(r"_token_(id|index)$", name):
            return (
                value
                if value < TOKENS
                else self.special.setdefault(value, VOCABULARY - 1 - len(self.special))
            )
        if re.fullmatch(DEPTH, name) and layers:
            return layers
        if name == "window_size" and value == 112:  # in pixels, not in patches
            return 32
        if re.search("key_value_heads|kv_heads", name) and value == config.get("num_attention_heads"):
            return min(value, HEADS)
        if name == "embed_dim" and isinstance(config.get("num_heads"), (list, tuple)):
            return HEAD_DIM * config["num_heads"][0]
        if name == "head_dim" and value == config.get("qk_rope_head_dim"):
            return min(value, HEAD_DIM // 2)
        return min(value, next((v for pattern, v in BOUNDS.items() if re.fullmatch(pattern, name)), value))


def _value(config: PreTrainedConfig, name: str) -> Any:
    """A field's value, under its own name or the one that it is stored under."""
    return vars(config)[name] if name in vars(config) else getattr(config, name, None)


def _names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(v, str) for v in value)


def _kept_layers(kinds: list[list[str]], depth: int, least: int) -> list[int]:
    """The first layer of every kind, at most four kinds, and further layers up to two or `least`."""
    first: dict[tuple[str, ...], int] = {}
    for layer, kind in enumerate(zip(*kinds, strict=True)):
        first.setdefault(kind, layer)
    layers = list(first.values())[:4]
    others = [layer for layer in range(depth) if layer not in layers]
    return sorted(layers + others[: max(0, LAYERS - len(layers), least - len(layers))])


def _rope(rope: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings with the sections of the head's width shrunk like the head."""
    sections = rope.get("mrope_section")
    if not sections:
        return rope
    full = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    small = [section * HEAD_DIM // full for section in sections]
    small[-1] += sum(sections) * HEAD_DIM // full - sum(small)
    return rope | {"mrope_section": small}
