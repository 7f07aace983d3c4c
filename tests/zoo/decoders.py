"""Causal language models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zoo.case import Case, Expected, fused, gated, hf, plain, text

LLAMA = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 2}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
SILU = (gated(2, 24, 40, "silu"),)
FUSED = (fused(2, 24, 40, "silu"),)
GELU_TANH = (plain(2, 24, 40, "gelu_tanh"),)


def causal(name: str, model_class: str, blocks: Iterable[Expected] = (), **config: Any) -> Case:
    return hf(name, model_class, blocks, text, generate=True, **config)


def llama(name: str, model_class: str, blocks: Iterable[Expected] = SILU, **config: Any) -> Case:
    return causal(name, model_class, blocks, **LLAMA | config)


DECODERS: list[Case] = [
    causal("gpt2", "GPT2LMHeadModel", GELU_TANH, **GPT2, n_head=2, n_inner=40),
    causal(
        "gpt-neo",
        "GPTNeoForCausalLM",
        GELU_TANH,
        vocab_size=61,
        hidden_size=24,
        intermediate_size=40,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=32,
    ),
    llama("gpt-neox", "GPTNeoXForCausalLM", [plain(2, 24, 40, "gelu")]),
    causal("gptj", "GPTJForCausalLM", GELU_TANH, **GPT2, n_head=2, n_inner=40, rotary_dim=4),
    causal(
        "opt",
        "OPTForCausalLM",
        [plain(2, 24, 40, "relu")],
        vocab_size=61,
        hidden_size=24,
        ffn_dim=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        max_position_embeddings=32,
    ),
    causal(
        "bloom", "BloomForCausalLM", [plain(2, 24, 96, "gelu_tanh")], vocab_size=61, hidden_size=24, n_head=2
    ),
    causal("codegen", "CodeGenForCausalLM", GELU_TANH, **GPT2, n_head=4, n_inner=40, rotary_dim=4, n_ctx=32),
    llama("llama", "LlamaForCausalLM"),
    llama("mistral", "MistralForCausalLM", sliding_window=4),
    llama("qwen2", "Qwen2ForCausalLM"),
    llama("qwen3", "Qwen3ForCausalLM", head_dim=8),
    llama("gemma2", "Gemma2ForCausalLM", [gated(2, 24, 40, "gelu_tanh")], head_dim=8, sliding_window=4),
    llama("gemma3", "Gemma3ForCausalLM", [gated(2, 24, 40, "gelu_tanh")], head_dim=8, sliding_window=4),
    llama("stablelm", "StableLmForCausalLM", rope_parameters=ROPE),
    llama("olmo2", "Olmo2ForCausalLM"),
    llama("smollm3", "SmolLM3ForCausalLM"),
    llama("granite", "GraniteForCausalLM", residual_multiplier=0.5),
    llama("phi", "PhiForCausalLM", GELU_TANH),
    llama("phi3", "Phi3ForCausalLM", FUSED),
    llama("glm4", "Glm4ForCausalLM", FUSED, head_dim=12),
    llama("cohere", "CohereForCausalLM"),
    llama("nemotron", "NemotronForCausalLM", [plain(2, 24, 40, "relu2")], head_dim=12),
    causal(
        "falcon",
        "FalconForCausalLM",
        [plain(2, 24, 40, "gelu")],
        vocab_size=61,
        hidden_size=24,
        ffn_hidden_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
    ),
    causal(
        "mpt",
        "MptForCausalLM",
        [plain(2, 24, 96, "gelu")],
        vocab_size=61,
        d_model=24,
        n_heads=2,
        n_layers=2,
        max_seq_len=32,
    ),
    llama("starcoder2", "Starcoder2ForCausalLM", GELU_TANH),
    llama("mixtral", "MixtralForCausalLM", (), num_local_experts=4, refused=[("experts", "expert")]),
    # The shared expert runs for every token; the sigmoid gate on its output is no part of it.
    llama(
        "qwen2-moe",
        "Qwen2MoeForCausalLM",
        [gated(2, 24, 56, "silu")],
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=56,
        refused=[("experts", "expert")],
    ),
    llama(
        "gpt-oss",
        "GptOssForCausalLM",
        (),
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=12,
        sliding_window=4,
        refused=[("experts", "expert")],
    ),
    causal("mamba", "MambaForCausalLM", vocab_size=61, hidden_size=24, state_size=5, num_hidden_layers=2),
    # The receptance gate reads another mixture of the inputs and scales the block's output from outside.
    causal(
        "rwkv",
        "RwkvForCausalLM",
        [plain(2, 24, 40, "relu2")],
        vocab_size=61,
        hidden_size=24,
        attention_hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        context_length=32,
    ),
    llama("olmo", "OlmoForCausalLM"),
    llama("persimmon", "PersimmonForCausalLM", [plain(2, 24, 40, "relu2")]),
    causal("openai-gpt", "OpenAIGPTLMHeadModel", [plain(2, 24, 96, "gelu_tanh")], **GPT2, n_head=2),
    causal("gpt-bigcode", "GPTBigCodeForCausalLM", GELU_TANH, **GPT2, n_head=2, n_inner=40),
    causal("ctrl", "CTRLLMHeadModel", [plain(2, 24, 40, "relu")], **GPT2, n_head=2, dff=40),
    causal(
        "xglm",
        "XGLMForCausalLM",
        [plain(2, 24, 40, "gelu")],
        vocab_size=61,
        d_model=24,
        ffn_dim=40,
        num_layers=2,
        attention_heads=2,
        max_position_embeddings=32,
    ),
    causal(
        "trocr",
        "TrOCRForCausalLM",
        [plain(2, 24, 40, "gelu")],
        vocab_size=61,
        d_model=24,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=40,
        max_position_embeddings=32,
    ),
    # The product at the end of each layer, wider than the stream here, is with the embeddings' projection.
    llama(
        "gemma3n",
        "Gemma3nForCausalLM",
        [gated(2, 24, 40, "gelu_tanh")],
        head_dim=8,
        intermediate_size=[40, 40],
        vocab_size_per_layer_input=61,
        hidden_size_per_layer_input=28,
        laurel_rank=6,
        num_kv_shared_layers=0,
        sliding_window=4,
        activation_sparsity_pattern=[0.0, 0.0],
    ),
    # One dense layer; two with experts and a shared expert, which all tokens pass.
    llama(
        "deepseek-v3",
        "DeepseekV3ForCausalLM",
        [gated(1, 24, 40, "silu"), gated(2, 24, 56, "silu")],
        num_hidden_layers=3,
        num_key_value_heads=2,
        first_k_dense_replace=1,
        moe_intermediate_size=28,
        n_shared_experts=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        kv_lora_rank=10,
        q_lora_rank=14,
        qk_rope_head_dim=4,
        qk_nope_head_dim=6,
        v_head_dim=8,
        refused=[("mlp.experts", "expert")],
    ),
    llama("granitemoe", "GraniteMoeForCausalLM", (), num_local_experts=4, refused=[("experts", "expert")]),
    llama(
        "jamba",
        "JambaForCausalLM",
        [gated(2, 24, 40, "silu")],
        num_hidden_layers=3,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        use_mamba_kernels=False,
        mamba_d_state=5,
        mamba_dt_rank=3,
        refused=[("experts", "expert")],
    ),
    llama(
        "bamba",
        "BambaForCausalLM",
        attn_layer_indices=[1],
        mamba_n_heads=4,
        mamba_d_head=12,
        mamba_d_state=5,
        mamba_chunk_size=4,
    ),
    llama(
        "lfm2",
        "Lfm2ForCausalLM",
        block_auto_adjust_ff_dim=False,
        layer_types=["conv", "full_attention"],
    ),
    # Each use of the shared block adds a low-rank pair to it, and a linear follows before the addition.
    llama(
        "zamba2",
        "Zamba2ForCausalLM",
        (),
        num_hidden_layers=3,
        hybrid_layer_ids=[1, 2],
        layer_types=["mamba", "hybrid", "hybrid"],
        num_key_value_heads=2,
        adapter_rank=4,
        n_mamba_heads=4,
        mamba_d_state=5,
        mamba_ngroups=1,
        chunk_size=4,
        use_mamba_kernels=False,
    ),
]
