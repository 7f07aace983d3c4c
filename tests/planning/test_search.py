"""Plans: curves of a small model, budgets spent against brute force, refusals."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from test_conversion import BY_NAME, batches
from typer.testing import CliRunner

import fffconvert as fff
from fffconvert.cli import app
from fffconvert.conversion import fit_blocks, prepare
from fffconvert.errors import FFFError
from fffconvert.options import ConvertOptions
from fffconvert.planning import search
from fffconvert.planning.file import Plan
from fffconvert.planning.search import Choice, Curve, spend
from fffconvert.tree import FFFLayer


def curve(name: str, sensitivity: float, *points: tuple[int, float]) -> Curve:
    choices = tuple(Choice({"depth": 0, "leaf_width": macs}, macs, error, macs) for macs, error in points)
    return Curve(name, 1000, 0.3, sensitivity, choices)


CURVES = [
    curve("easy", 1.0, (1, 1.0), (100, 0.3), (300, 0.2), (1000, 0.0)),
    curve("hard", 1.0, (1, 1.0), (100, 0.9), (300, 0.7), (1000, 0.0)),
    curve("idle", 0.0, (1, 1.0), (100, 0.1)),
]


@pytest.mark.parametrize("budget", [0.001, 0.04, 0.1, 0.3, 0.5, 1.0])
def test_the_budget_is_kept_and_spent_well(budget: float):
    chosen = spend(CURVES, budget=budget)
    spent = sum(choice.macs for choice in chosen.values())
    assert spent <= budget * 3000

    def error(choices: tuple[Choice, ...]) -> float:
        return sum(c.sensitivity * choice.error for c, choice in zip(CURVES, choices, strict=True))

    affordable = [
        choices
        for choices in product(*(c.choices for c in CURVES))
        if sum(choice.macs for choice in choices) <= budget * 3000
    ]
    found = error(tuple(chosen[c.name] for c in CURVES))
    assert found <= min(map(error, affordable)) + 0.15  # greed is not always best, but near it
    assert chosen["idle"].macs == 1 or budget > 0.5


def test_a_larger_budget_never_leaves_more_error():
    errors = []
    for budget in (0.01, 0.05, 0.1, 0.2, 0.4, 0.8):
        chosen = spend(CURVES, budget=budget)
        errors.append(sum(c.sensitivity * chosen[c.name].error for c in CURVES))
    assert errors == sorted(errors, reverse=True)


def test_error_is_bought_as_cheaply_as_the_curves_allow():
    chosen = spend(CURVES, max_error=0.65)
    assert {name: choice.macs for name, choice in chosen.items()} == {"easy": 100, "hard": 1, "idle": 1}


def test_what_cannot_be_met_is_refused():
    with pytest.raises(FFFError, match="exactly one"):
        spend(CURVES)
    with pytest.raises(FFFError, match=r"budget is 0\.010%.*expected at least 0\.100%"):
        spend(CURVES, budget=1e-4)
    with pytest.raises(FFFError, match=r"leave an error of 0\.000"):
        spend(CURVES, max_error=-0.1)
    with pytest.raises(FFFError, match=r"fall by 10\.00x"):
        search.budget_of_speedup(CURVES, 20)


def test_speedup_is_that_of_the_whole_model():
    share = 0.9
    budget = search.budget_of_speedup(CURVES, 4.0)
    assert 1 / (1 - share + share * budget) == pytest.approx(4.0)


@pytest.mark.parametrize("name", ["bert", "llama", "conv1x1-1d"])
def test_measured_plans_convert_the_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case = BY_NAME[name]
    model = case.build()
    text = {"calibration": batches(case), "example_inputs": case.inputs()}
    prepared = prepare(model, ConvertOptions(depth=1, **text))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    curves = search.measure_curves(model, prepared)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(curve.sensitivity > 0 for curve in curves)
    for found in curves:
        macs, errors = zip(*((choice.macs, choice.error) for choice in found.choices), strict=True)
        assert list(macs) == sorted(macs)
        assert list(errors) == sorted(errors, reverse=True)
        assert "leaf_sparsity" in found.choices[-1].shape  # nothing comes nearer to the block than itself
    chosen = spend(curves, budget=0.5)
    plan = fff.plan(model, budget=0.5, output=tmp_path / "plan.yaml", **text)
    assert plan.curves == tuple(curves)
    monkeypatch.setattr(search, "measure_curves", None)  # another budget needs no second measurement
    assert fff.plan(model, budget=0.6, **text).curves == plan.curves
    assert Plan.read(tmp_path / "plan.yaml").blocks == plan.blocks
    usual = {"trees": 1, "trunk": 0, "leaf_width": 0, "leaf_sparsity": 0.0}
    assert plan.shapes == {name: {**usual, **choice.shape} for name, choice in chosen.items()}
    prepared = prepare(model, ConvertOptions(plan=tmp_path / "plan.yaml", **text))
    results = fit_blocks(model, prepared)
    assert [result.active_fraction for result in results] == [
        pytest.approx(chosen[c.name].macs / c.macs) for c in curves
    ]
    assert any(isinstance(module, FFFLayer) for module in model.modules())
    fff.restore(model)


def test_a_plan_of_another_model_is_refused():
    case = BY_NAME["bert"]
    with pytest.raises(FFFError, match=r"names block 'other'"):
        fff.convert(
            case.build(),
            plan=Plan.of_shapes({"other": {"depth": 1}}),
            calibration=batches(case),
            example_inputs=case.inputs(),
        )


def test_curves_are_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    search.plot(tmp_path / "curves.png", CURVES, spend(CURVES, budget=0.3))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "x", "-o", "y"], "exactly one of --budget, --speedup and --max-error"),
        (["plan", "x", "-o", "y", "--budget", "0.1", "--speedup", "2"], "exactly one"),
        (["plan", "x", "-o", "y", "--budget", "-1"], "--budget is -1.0; expected more than 0"),
        (["convert", "x", "-o", "y"], "exactly one of --depth and --plan"),
        (["convert", "x", "-o", "y", "--depth", "1", "--plan", "z"], "exactly one of --depth and --plan"),
    ],
)
def test_the_command_line_says_what_is_missing(arguments: list[str], message: str):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
