"""`locate` against the golden answers of the zoo, which were read from the models' sources."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BatchEncoding, PreTrainedModel
from zoo import ARCHITECTURES, HANDWRITTEN, Case

from fffconvert.errors import FFFError
from fffconvert.forward import evaluation
from fffconvert.location import locate
from fffconvert.location.capturing import capture
from fffconvert.location.operations import multiply_adds

CASES = [*ARCHITECTURES, *HANDWRITTEN]
BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_finds_just_the_blocks_that_the_source_has(case: Case):
    sites = locate(case.build(), case.inputs())
    found = Counter((s.kind.value, s.d_model, s.d_hidden, s.activation, s.shared_calls) for s in sites)
    expected: Counter = Counter()
    for e in case.blocks:
        expected[e.kind, e.d_model, e.d_hidden, e.activation, e.calls] += e.count
    assert found == expected, sites
    for name, reason in case.refused:
        assert any(re.search(name, s.name) and re.search(reason, s.reason) for s in sites.skipped), (
            sites.skipped
        )


def test_zoo_is_as_large_as_promised():
    assert len(ARCHITECTURES) >= 67
    assert len(HANDWRITTEN) >= 20


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "torch-encoder-relu"])
def test_leaves_the_model_as_it_was(name: str):
    case = BY_NAME[name]
    model = case.build().train()
    model.get_submodule(next(n for n, _ in model.named_children())).eval()
    before = {n: (id(m), m.training, sorted(vars(m))) for n, m in model.named_modules()}
    weights = {n: p.clone() for n, p in model.state_dict().items()}
    locate(model, case.inputs())
    assert {n: (id(m), m.training, sorted(vars(m))) for n, m in model.named_modules()} == before
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(weights[n], p) for n, p in model.state_dict().items())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "bart"])
def test_finds_the_same_under_autocast_in_half_precision_and_on_meta(name: str):
    case = BY_NAME[name]
    expected = [(s.name, s.kind, s.d_hidden, s.activation) for s in locate(case.build(), case.inputs())]

    def found(model: nn.Module, device: str = "cpu") -> list:
        inputs = {key: value.to(device) for key, value in case.inputs().items()}
        return [(s.name, s.kind, s.d_hidden, s.activation) for s in locate(model, inputs)]

    with torch.autocast("cpu", torch.bfloat16):
        assert found(case.build()) == expected
    assert found(case.build().to(torch.bfloat16)) == expected
    if name == "bart":  # its mask code looks at values
        with pytest.raises(FFFError, match="does not run on the example inputs"):
            found(case.build().to("meta"), "meta")
    else:
        assert found(case.build().to("meta"), "meta") == expected


def test_names_layers_and_shares():
    case = BY_NAME["bert"]
    sites = locate(case.build(), case.inputs())
    assert [site.layer for site in sites] == [0, 1]
    assert [site.name for site in sites] == [f"bert.encoder.layer.{i}.intermediate.dense" for i in (0, 1)]
    assert sites[0].parameters == 2 * 24 * 40 + 24 + 40
    assert sites[0].biases
    assert 0 < sum(site.macs_share for site in sites) < 1
    assert sites[0].name in repr(sites)
    assert len(sites[1:]) == 1


@pytest.mark.parametrize(
    "name", ["bert", "gpt2", "llama", "t5", "vit", "whisper", "bart", "wav2vec2", "mpnet"]
)
def test_counts_multiply_adds_as_torch_does(name: str):
    case = BY_NAME[name]
    model, inputs = case.build(), case.inputs()
    for part in model.modules():  # older releases of transformers do not pass it on to encoder and decoder
        if isinstance(part, PreTrainedModel):  # torch's counter does not know the fused attention of the CPU
            part.set_attn_implementation("eager")
    ours = sum(multiply_adds(node) for node in capture(model, inputs).graph.nodes)
    with FlopCounterMode(display=False) as counter, evaluation(model):
        model(**inputs)
    assert 2 * ours == counter.get_total_flops()


def test_takes_narrow_blocks_only_when_asked():
    case = BY_NAME["adapter"]
    assert not locate(case.build(), case.inputs())
    assert len(locate(case.build(), case.inputs(), min_expansion=0.1)) == 2


def test_guesses_inputs_of_transformers_models_and_asks_for_them_otherwise():
    assert len(locate(BY_NAME["bert"].build())) == 2
    with pytest.raises(FFFError, match="example_inputs"):
        locate(nn.Linear(3, 3))


def test_inputs_are_a_tensor_a_tuple_or_a_mapping():
    case = BY_NAME["bert"]
    model = case.build()
    ids = case.inputs()["input_ids"]
    mask = torch.ones_like(ids)
    expected = [site.name for site in locate(model, case.inputs())]
    for given in (
        ids,
        (ids,),
        (ids, mask),
        [ids, mask],
        {"input_ids": ids},
        BatchEncoding({"input_ids": ids}),
    ):
        assert [site.name for site in locate(model, given)] == expected
    assert list(locate(nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4))) == []


class AnyArguments(nn.Module):
    def __init__(self, model: nn.Module, main: str | None = None):
        super().__init__()
        self.inner = model
        if main:
            self.main_input_name = main

    def forward(self, *arguments, **named):
        return self.inner(*arguments, **named)


def test_a_tensor_for_a_forward_without_names_goes_by_the_main_input():
    case = BY_NAME["bert"]
    ids = case.inputs()["input_ids"]
    assert len(locate(AnyArguments(case.build(), "input_ids"), ids)) == len(locate(case.build(), ids))
    with pytest.raises(FFFError, match=r"AnyArguments\.forward names no arguments; give .* as a mapping"):
        locate(AnyArguments(case.build()), ids)


@pytest.mark.parametrize(
    ("given", "message"), [("text", "is a str; expected a tensor, a tuple"), (3, "is a int")]
)
def test_inputs_of_another_kind_are_refused(given, message: str):
    with pytest.raises(FFFError, match=message):
        locate(BY_NAME["bert"].build(), given)


def test_model_without_blocks_is_empty_with_a_table():
    case = BY_NAME["mamba"]
    sites = locate(case.build(), case.inputs())
    assert not sites
    assert "name" in repr(sites)


def test_dense_copy_of_every_block_computes_what_the_block_computes():
    for name in ("bert", "llama", "modernbert", "conv1x1-2d"):
        case = BY_NAME[name]
        model, inputs = case.build(), case.inputs()
        for site in locate(model, inputs):
            taken: dict[str, torch.Tensor] = {}
            entry = model.get_submodule(site.placement.entry[0])
            leave = model.get_submodule((site.placement.exit or site.placement.entry)[0])
            handles = [
                entry.register_forward_pre_hook(lambda _, args, taken=taken: taken.update(x=args[0])),
                leave.register_forward_hook(lambda *call, taken=taken: taken.update(y=call[2])),
            ]
            with evaluation(model):
                model(**inputs)
            for handle in handles:
                handle.remove()
            torch.testing.assert_close(site.dense()(taken["x"]), taken["y"], rtol=1e-5, atol=1e-5)
