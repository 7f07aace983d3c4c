"""The known answers themselves: every model builds, runs, repeats, and has the widths it is said to have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from transformers.pytorch_utils import Conv1D
from zoo import ARCHITECTURES, HANDWRITTEN, Case, Expected, run

CASES = ARCHITECTURES + HANDWRITTEN
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x) ** 2,
    "sigmoid": torch.sigmoid,
    "mish": F.mish,
    "elu": F.elu,
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_runs_alike_in_both_modes_and_again(case: Case):
    model, inputs = case.build(), case.inputs()
    output = run(model, inputs)
    assert output.isfinite().all()
    assert output.numel() > 1
    assert output.std() > 1e-4
    assert torch.equal(output, run(case.build(), case.inputs()))
    model.train()
    trained = run(model, inputs)
    assert trained.isfinite().all()
    assert bool(case.random) != torch.allclose(output, trained, atol=1e-5)


def projections(case: Case) -> Counter[tuple[int, ...]]:
    """Sorted shapes of the weights that the expected blocks are made of."""
    shapes: Counter[tuple[int, ...]] = Counter()
    for block in case.blocks:
        up = 2 * block.d_hidden if block.kind == "fused gated" else block.d_hidden
        shapes[shape(block.d_model, up)] += block.count * (2 if block.kind == "gated" else 1)
        shapes[shape(block.d_model, block.d_hidden)] += block.count
    return shapes


def shape(*sizes: int) -> tuple[int, ...]:
    """Sizes without the ones, sorted: the same for a linear, its transpose, and a 1x1 convolution."""
    return tuple(sorted(size for size in sizes if size > 1))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_known_answer_agrees_with_the_shapes_of_the_parameters(case: Case):
    expected = projections(case)
    found = Counter(shape(*p.shape) for p in case.build().parameters())
    assert {sizes: found[sizes] for sizes in expected} == dict(expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_block_matters_to_the_output(case: Case):
    model, inputs = case.build(), case.inputs()
    output, expected = run(model, inputs), projections(case)
    for weight in model.parameters():
        if shape(*weight.shape) in expected:
            kept = weight.detach().clone()
            with torch.no_grad():
                weight.zero_()
                assert not torch.allclose(output, run(model, inputs), atol=1e-5)
                weight.copy_(kept)


@pytest.mark.parametrize("case", [case for case in CASES if case.blocks], ids=str)
def test_activation_is_the_named_one(case: Case):
    """What the down-projections read is the activation of what the up-projections gave.

    Only projections that are modules can be seen, and some of the hand-written models have none.
    """
    model = case.build()
    expected = {(b.d_model, b.d_hidden): b for b in case.blocks}
    ups: dict[tuple[int, int], list[torch.Tensor]] = {}
    matches: Counter[tuple[int, int]] = Counter()

    def look(module: torch.nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        axis = 1 if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d) else -1
        x, y = args[0].detach().clone().movedim(axis, -1), output.detach().clone().movedim(axis, -1)
        for (d_model, d_hidden), block in expected.items():
            width = 2 * d_hidden if block.kind == "fused gated" else d_hidden
            if (x.shape[-1], y.shape[-1]) == (d_model, width):
                ups.setdefault((d_model, d_hidden), []).append(y)
            elif (x.shape[-1], y.shape[-1]) == (d_hidden, d_model):
                projected = ups[d_model, d_hidden]
                if block.activation != "custom":
                    hidden = [values.reshape(x.shape) for values in candidates(block, projected)]
                    assert any(torch.allclose(x, values, atol=1e-5) for values in hidden)
                matches[d_model, d_hidden] += 1

    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d | Conv1D):
            module.register_forward_hook(look)
    model.train()
    run(model, case.inputs())
    for widths, block in expected.items():
        unseen = {0} if case in HANDWRITTEN else set()
        assert matches[widths] in {block.count * block.calls} | unseen


def candidates(block: Expected, projected: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The hidden values that a block of this kind may have computed from the latest up-projections."""
    act = ACTIVATIONS[block.activation]
    if block.kind == "plain":
        yield act(projected[-1])
        return
    pairs = [projected[-2:]] if block.kind == "gated" else [projected[-1].chunk(2, -1)]
    if block.kind == "fused gated":
        pairs.append((projected[-1][..., ::2], projected[-1][..., 1::2]))
    for first, second in pairs:
        yield act(first) * second
        yield first * act(second)


@pytest.mark.parametrize("case", [case for case in CASES if case.refused], ids=str)
def test_refused_parts_exist(case: Case):
    names = [name for name, _ in case.build().named_modules()]
    for part, _ in case.refused:
        assert any(part in name for name in names)


@pytest.mark.parametrize("case", [case for case in CASES if case.generate], ids=str)
def test_generates(case: Case):
    inputs = {name: value for name, value in case.inputs().items() if not name.startswith("decoder")}
    first, second = (
        case.build().generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False) for _ in range(2)
    )
    assert torch.equal(first, second)
