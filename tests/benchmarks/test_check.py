from __future__ import annotations

import pytest
import torch
from zoo.reference import loop

from fffconvert.benchmarks import check
from fffconvert.benchmarks.check import WrongOutputError
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer

SPECS = {
    "paper": FFFSpec(24, 24, 4),
    "forest": FFFSpec(24, 24, 2, trees=6),
    "everything": FFFSpec(24, 20, 2, trees=2, trunk=3, branch_outputs=True, leaf_width=2, leaf_gated=True),
}


def draw(spec: FFFSpec, tokens: int = 100) -> tuple[FFFLayer, torch.Tensor]:
    torch.manual_seed(0)
    return FFFLayer(spec).eval(), torch.randn(tokens, spec.d_in)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_truth_is_that_of_the_per_token_loop(spec):
    layer, x = draw(spec, 20)
    tensors = {name.removeprefix("fff_"): p for name, p in layer.named_parameters()}
    y, _, _ = loop(x, tensors, torch.nn.functional.gelu)
    truth = check.truth(layer, "float32", x)
    torch.testing.assert_close(truth.y, y[truth.kept], rtol=1e-12, atol=1e-12)
    assert (truth.left_out, truth.path_agreement) == (0, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_plain_torch_on_the_stored_rows_passes(spec, dtype):
    layer, x = draw(spec)
    with torch.no_grad():
        y = check.with_stored_rows(layer, dtype)(x)
    assert 0 < check.largest_error(y, check.truth(layer, dtype, x), "torch") < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rounded_rows_are_told_from_others(dtype):
    layer, x = draw(SPECS["paper"])
    with torch.no_grad(), pytest.raises(WrongOutputError, match="torch gives wrong outputs"):
        check.largest_error(layer(x), check.truth(layer, dtype, x), "torch")


WRONG = {
    "zeros": torch.zeros_like,
    "NaN in one place": lambda y: torch.where(torch.arange(len(y))[:, None] == 3, torch.nan, y),
    "one token is another": lambda y: torch.cat([y[1:2], y[1:]]),
    "a little too large": lambda y: y * 1.0001,
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_wrong_outputs_are_refused(spoil):
    layer, x = draw(SPECS["paper"])
    with torch.no_grad(), pytest.raises(WrongOutputError, match="wrong outputs"):
        check.largest_error(spoil(layer(x)), check.truth(layer, "float32", x), "spoilt")


def test_the_op_has_no_part_in_the_truth(monkeypatch):
    layer, x = draw(SPECS["everything"])
    expected = check.truth(layer, "int8", x)

    def fail(*_: object) -> None:
        raise AssertionError("the truth came from the op, which may run on the backend that is checked")

    monkeypatch.setattr("fffconvert.tree.layer.cmm", fail)
    assert torch.equal(check.truth(layer, "int8", x).y, expected.y)


def test_tokens_with_a_logit_of_zero_are_left_out():
    layer, x = draw(SPECS["paper"])
    with torch.no_grad():
        layer.fff_in_bias[0, 0] = 0
    x[:30] = 0
    truth = check.truth(layer, "float32", x)
    assert truth.left_out == pytest.approx(0.3)
    assert not truth.kept[:30].any()
    assert len(truth.y) == 70


def test_with_too_few_tokens_left_nothing_is_compared():
    layer, x = draw(SPECS["paper"])
    with torch.no_grad():
        layer.fff_in_bias.zero_()
    x[:51] = 0
    with pytest.raises(WrongOutputError, match="51 of 100 tokens"):
        check.truth(layer, "float32", x)


def test_rows_of_zeros_survive_int8():
    layer, _ = draw(SPECS["paper"])
    with torch.no_grad():
        layer.fff_out_weight[0, 3] = 0
    stored = check.with_stored_rows(layer, "int8")
    assert stored.fff_out_weight.isfinite().all()
    assert not stored.fff_out_weight[0, 3].any()
    step = layer.fff_in_weight.abs().amax(-1) / 127
    error = (stored.fff_in_weight - layer.fff_in_weight).abs().amax(-1)
    assert (error <= step * 0.501).all()


def test_paths_that_rounding_changes_are_counted():
    layer, x = draw(FFFSpec(24, 24, 6, trees=4), 400)
    stored = check.with_stored_rows(layer, "int8")
    weights = stored.weights
    a = torch.ops.fffconvert.cmm(x.double(), *(w if w is None else w.double() for w in weights), "gelu")[2]
    b = torch.ops.fffconvert.cmm(x, *layer.weights, "gelu")[2]
    agreement = check.truth(layer, "int8", x).path_agreement
    assert agreement == pytest.approx(float((a == b).double().mean()))
    assert 0.5 < agreement < 1
