"""The formulas against torch's own counter: multiply-adds of architectures, dense and converted, exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from zoo import ARCHITECTURES, Case

from fffconvert import surgery
from fffconvert.estimation.anatomy import Part
from fffconvert.estimation.conversion import Budget, ablated, converted
from fffconvert.estimation.recording import record, weightless
from fffconvert.estimation.workload import Phase, Workload
from fffconvert.location import locate
from fffconvert.location.inputs import example_inputs
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer

# Left out: what does not run without weights (code that counts the tokens of each expert or language, or has
# no shapes for it), has no feedforward block, or has tables of relative positions, windows or filters whose
# length is no multiple of the text's.
INEXACT = {
    *("deberta", "deberta-v2", "perceiver"),  # the counter itself fails
    *("longformer", "led", "xmod", "switch-transformers", "vilt"),
    *("convbert-grouped", "squeezebert", "ibert", "segformer"),
    *("xlnet", "funnel", "prophetnet", "bert-chunked", "jamba", "bamba", "lfm2"),
    *("clip", "siglip", "pixtral"),  # tiny images have as few patches as texts have tokens
}
CASES = [c for c in ARCHITECTURES if (c.blocks or c.refused) and c.name not in INEXACT]
SIZES = [(1, 7), (4, 23)]


def counted(model: nn.Module, inputs: dict[str, Any]) -> int:
    """Multiply-adds by torch's counter."""
    with weightless(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dense_and_converted_equal_the_counter(case: Case):
    model = case.build().to("meta")
    anatomy = record(model)
    inputs = [example_inputs(model, batch=b, length=n, decoder_length=n) for b, n in SIZES]
    for (batch, length), arguments in zip(SIZES, inputs, strict=True):
        assert sum(anatomy.macs(Workload(batch, length)).values()) == counted(model, arguments)
    if any(block.experts for block in anatomy.blocks):
        return
    budget = Budget(depth=3, trees=2, trunk=1)
    specs = {block.name: budget.spec(block) for block in anatomy.blocks}
    with weightless(model):
        sites = locate(model, example_inputs(model))
    assert {site.name for site in sites} == set(specs)
    surgery.replace(model, {site: FFFLayer(specs[site.name], device="meta") for site in sites})
    after = converted(anatomy, list(specs.values()))
    for (batch, length), arguments in zip(SIZES, inputs, strict=True):
        assert sum(after.macs(Workload(batch, length)).values()) == counted(model, arguments)
    assert sum(after.parameters.values()) == sum(p.numel() for p in model.parameters())


def test_at_least_sixty_architectures_are_compared():
    assert len(CASES) >= 60


@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=24, n_layer=3, n_head=2, n_positions=64)),
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=61,
                hidden_size=24,
                intermediate_size=40,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        ),
    ],
    ids=["gpt2", "llama"],
)
def test_decoding_one_token_equals_the_counter(model: nn.Module):
    model = model.eval().to("meta")  # on the CPU the counter does not know attention
    anatomy = record(model)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), weightless(model):
        model(input_ids=torch.ones(2, 19, dtype=torch.long, device="meta"), past_key_values=cache)
    token = torch.ones(2, 1, dtype=torch.long, device="meta")
    got = anatomy.macs(Workload(2, 20, Phase.DECODE, anatomy.generates))
    assert sum(got.values()) == counted(model, {"input_ids": token, "past_key_values": cache})


def test_parts_add_up_as_in_the_textbook():
    d, hidden, layers, vocabulary, length = 24, 40, 2, 61, 10
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=d, n_inner=hidden, n_layer=layers, n_head=2, n_positions=32
    )
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    anatomy = record(model.eval())
    assert anatomy.macs(Workload(1, length)) == {
        Part.EMBEDDINGS: 0,
        Part.PROJECTIONS: length * layers * 4 * d * d,
        Part.CONTEXT: layers * 2 * length * length * d,
        Part.FEEDFORWARD: length * layers * 2 * d * hidden,
        Part.HEAD: length * d * vocabulary,
        Part.OTHER: 0,
    }
    assert anatomy.parameters[Part.EMBEDDINGS] == vocabulary * d + 32 * d
    assert anatomy.parameters[Part.FEEDFORWARD] == layers * (2 * d * hidden + d + hidden)
    assert sum(anatomy.parameters.values()) == sum(p.numel() for p in model.parameters())
    assert sum(ablated(anatomy).macs(Workload(1, length)).values()) == length * (
        layers * (4 * d * d + 2 * length * d) + d * vocabulary
    )


@pytest.mark.parametrize(
    ("trunk", "width", "gated"), [(0, 0, False), (3, 0, False), (2, 4, False), (0, 5, True)]
)
@pytest.mark.parametrize("branch", [False, True])
def test_the_counter_knows_the_op(trunk: int, width: int, gated: bool, branch: bool):
    spec = FFFSpec(12, 20, 3, trees=2, trunk=trunk, branch_outputs=branch, leaf_width=width, leaf_gated=gated)
    layer = FFFLayer(spec, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.empty(7, 12, device="meta"))
    assert counter.get_total_flops() == 2 * 7 * spec.macs_per_token


def test_a_model_with_weights_is_left_as_it_was():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2
        )
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    record(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
