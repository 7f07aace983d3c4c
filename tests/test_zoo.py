"""The known answers themselves: every model builds, runs, repeats, and has the widths it is said to have."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from zoo import ARCHITECTURES, Case, run

CASES = ARCHITECTURES


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
