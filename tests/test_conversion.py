"""Converting models in memory, from Python."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace

import pytest
import torch
from peft import AutoPeftModel, LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForMaskedLM
from zoo import ARCHITECTURES, HANDWRITTEN, Case
from zoo.case import run

import fffconvert as fff
from fffconvert.errors import FFFError
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer

BY_NAME = {case.name: case for case in [*ARCHITECTURES, *HANDWRITTEN]}


def batches(case: Case, count: int = 12) -> list[dict]:
    """Inputs like the case's own, with other tokens."""
    made = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)

        def draw(value: torch.Tensor, generator=generator) -> torch.Tensor:
            if value.is_floating_point():
                return torch.randn(
                    4 * value.shape[0], *value.shape[1:], generator=generator, dtype=value.dtype
                )
            return torch.randint(5, 61, (4 * value.shape[0], *value.shape[1:]), generator=generator)

        made.append({name: draw(value) for name, value in case.inputs().items()})
    return made


def converted(case: Case, **options) -> nn.Module:
    defaults = {"depth": 3, "calibration": batches(case), "example_inputs": case.inputs()}
    return fff.convert(case.build(), **(defaults | options))


@pytest.mark.parametrize("name", ["bert", "llama", "bart", "albert", "vit", "conv1x1-2d", "functional-layer"])
def test_every_block_becomes_a_layer_and_the_model_runs(name: str):
    case = BY_NAME[name]
    model = converted(case)
    assert sum(isinstance(m, FFFLayer) for m in model.modules()) == sum(e.count for e in case.blocks)
    assert type(model) is type(case.build())
    assert run(model, case.inputs()).isfinite().all()


def test_a_larger_trunk_keeps_more():
    case = BY_NAME["bert"]
    expected = run(case.build(), case.inputs())
    errors = [
        float((run(converted(case, depth=2, trunk=trunk), case.inputs()) - expected).norm())
        for trunk in (0, 20)
    ]
    assert errors[1] < errors[0]


def test_depth_0_is_a_dense_layer_of_as_many_trees():
    model = converted(BY_NAME["bert"], depth=0, trees=40)
    layers = [module for module in model.modules() if isinstance(module, FFFLayer)]
    assert {layer.spec.active_width for layer in layers} == {40}
    assert run(model, BY_NAME["bert"].inputs()).isfinite().all()


def test_the_paper_s_layer_has_one_output_row_per_node():
    model = converted(BY_NAME["bert"], layer="paper")
    layer = next(module for module in model.modules() if isinstance(module, FFFLayer))
    assert layer.fff_out_weight.shape == (1, 15, 24)
    assert layer.fff_leaf_constant is None


def test_results_say_what_was_kept_on_held_out_text():
    from fffconvert.conversion import fit_blocks, prepare
    from fffconvert.options import ConvertOptions

    case = BY_NAME["bert"]
    model = case.build()
    prepared = prepare(
        model,
        ConvertOptions(depth=2, trees=2, trunk=4, calibration=batches(case), example_inputs=case.inputs()),
    )
    results = fit_blocks(model, prepared)
    assert [r.name for r in results] == [f"bert.encoder.layer.{i}.intermediate.dense" for i in (0, 1)]
    assert all(0 < result.r2_heldout < 1 for result in results)
    assert {r.active_width for r in results} == {4 + 2 * 3}
    assert results[0].active_fraction == pytest.approx(10 * 48 / (2 * 24 * 40))
    assert results[0].parameters_before == 2 * 24 * 40 + 24 + 40


def test_the_same_seed_gives_the_same_model():
    case = BY_NAME["llama"]
    first, second = (converted(case).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_restore_gives_the_original_back():
    case = BY_NAME["bart"]
    model = converted(case)
    fff.restore(model)
    assert torch.equal(run(model, case.inputs()), run(case.build(), case.inputs()))
    assert not hasattr(model.config, "quantization_config")


def test_a_converted_model_in_memory_saves_and_loads(tmp_path):
    case = BY_NAME["bert"]
    model = converted(case)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(run(loaded, case.inputs()), run(model, case.inputs()))


@pytest.mark.parametrize("name", ["bert", "llama", "bart"])
def test_what_was_converted_in_inference_mode_can_be_trained(name: str):
    case = BY_NAME[name]
    model = case.build()
    with torch.inference_mode():
        fff.convert(model, depth=3, calibration=batches(case), example_inputs=case.inputs())
    model.train()
    model(**case.inputs())[0].sum().backward()
    layers = [module for module in model.modules() if isinstance(module, FFFLayer)]
    assert all(layer.fff_out_weight.grad is not None for layer in layers)
    torch.optim.SGD(model.parameters(), 0.1).step()


def test_a_model_built_in_inference_mode_is_converted_too():
    case = BY_NAME["bert"]
    with torch.inference_mode():
        model = converted(case)
    assert run(model, case.inputs()).isfinite().all()
    layers = [module for module in model.modules() if isinstance(module, FFFLayer)]
    assert not any(parameter.is_inference() for layer in layers for parameter in layer.parameters())


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_an_offloaded_model_is_refused_with_what_to_do(offload: str, tmp_path):
    import accelerate

    case = BY_NAME["bert"]
    model = case.build()
    device = torch.device("cpu")
    if offload == "cpu":
        accelerate.cpu_offload(model, execution_device=device)
    else:
        accelerate.disk_offload(model, tmp_path, execution_device=device)
    options = {"depth": 2, "calibration": batches(case), "example_inputs": case.inputs()}
    with pytest.raises(FFFError, match=r"offloaded by accelerate.*remove_hook_from_submodules"):
        fff.convert(model, **options)
    accelerate.hooks.remove_hook_from_submodules(model)
    fff.convert(model, **options)
    assert run(model, case.inputs()).isfinite().all()


class TestOriginals:
    def test_come_back_as_the_model_is_by_then(self):
        case = BY_NAME["bart"]
        model = converted(case).train().double()
        fff.restore(model)
        expected = case.build().train().double()
        state = expected.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert {name: m.training for name, m in model.named_modules()} == {
            name: m.training for name, m in expected.named_modules()
        }
        assert {p.dtype for p in model.parameters()} == {torch.float64}

    def test_keep_a_dtype_of_their_own(self):
        case = BY_NAME["bert"]
        model = case.build()
        model.bert.encoder.layer[0].output.dense.double()  # a mixed model that nobody has touched since
        fff.replace(model, {site: nn.Identity() for site in fff.locate(case.build(), case.inputs())})
        fff.restore(model)
        assert model.bert.encoder.layer[0].output.dense.weight.dtype == torch.float64
        assert model.bert.encoder.layer[0].intermediate.dense.weight.dtype == torch.float32

    def test_are_let_go_of_when_asked(self):
        case = BY_NAME["llama"]
        model = case.build()
        blocks = [weakref.ref(layer.mlp) for layer in model.model.layers]
        fff.convert(
            model, depth=2, calibration=batches(case), example_inputs=case.inputs(), keep_originals=False
        )
        gc.collect()
        assert not any(block() for block in blocks)
        with pytest.raises(FFFError, match="keep_originals=False"):
            fff.restore(model)


def test_an_adapter_of_a_converted_model_is_not_one_of_the_original(tmp_path):
    case = BY_NAME["bert"]
    case.build().save_pretrained(tmp_path / "original")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "original")
    fff.convert(model, depth=2, calibration=batches(case), example_inputs=case.inputs())
    assert model.config.quantization_config.base_model == str(tmp_path / "original")
    get_peft_model(model, LoraConfig(target_modules=["query"])).save_pretrained(tmp_path / "adapter")
    assert not json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    with pytest.raises((OSError, ValueError)):
        AutoPeftModel.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize("case", [BY_NAME["llama"], BY_NAME["nanogpt"]], ids=str)
def test_a_conversion_that_fails_leaves_the_model_as_it_was(case: Case, monkeypatch: pytest.MonkeyPatch):
    from importlib import import_module

    module = import_module("fffconvert.conversion")
    fit, calls = module.fit_layer, []

    def fail_at_the_second(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*args, **options)

    monkeypatch.setattr(module, "fit_layer", fail_at_the_second)
    model = case.build()
    with pytest.raises(KeyboardInterrupt):
        fff.convert(model, depth=2, calibration=batches(case), example_inputs=case.inputs())
    assert len(calls) == 2
    assert torch.equal(run(model, case.inputs()), run(case.build(), case.inputs()))
    assert not any(isinstance(m, FFFLayer) for m in model.modules())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert", {"depth": -1}, "depth is -1"),
        ("bert", {"depth": 40}, "depth is 40"),
        ("bert", {"layer": "leafy"}, "`layer` is 'leafy'; expected one of branch, paper"),
        ("bert", {"tokens": 3}, "`tokens` is 3"),
        ("bert", {"include": ("nowhere",)}, "matches nothing"),
        ("bert", {"calibration": None}, "no tokenizer"),
        ("bert", {"calibration": []}, "calibration"),
        ("bert", {"calibration": [{"input_ids": torch.ones(1, 3, dtype=torch.long)}]}, "held out"),
        ("mamba", {}, "no feedforward block"),
        ("mixtral", {}, "experts"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_refused_and_the_model_stays(name: str, options: dict, message: str):
    case = BY_NAME[name]
    model = case.build()
    defaults = {"depth": 2, "calibration": batches(case), "example_inputs": case.inputs()}
    with pytest.raises(FFFError, match=message):
        fff.convert(model, **(defaults | options))
    assert torch.equal(run(model, case.inputs()), run(case.build(), case.inputs()))


def test_blocks_that_were_located_become_what_is_specified():
    case = BY_NAME["bert"]
    model = case.build()
    sites = fff.locate(model, case.inputs())
    spec = FFFSpec(24, 24, depth=1, trees=3, activation="relu")
    fff.convert(model, sites=sites, specs={sites[1].name: spec}, calibration=batches(case))
    (found,) = fff.layers_of(model).items()
    assert (found[0], found[1].layer.spec) == (sites[1].name, spec)
    with pytest.raises(FFFError, match="has d_out 8; expected 24"):
        fff.convert(
            case.build(),
            specs={sites[0].name: replace(spec, d_out=8)},
            calibration=batches(case),
            example_inputs=case.inputs(),
        )


def test_a_model_by_name_and_one_in_memory_are_written_alike(tmp_path):
    case = BY_NAME["bert"]
    case.build().save_pretrained(tmp_path / "original")
    options = {"depth": 2, "calibration": batches(case)}
    named = fff.convert(str(tmp_path / "original"), output=tmp_path / "named", **options)
    held = case.build()
    assert fff.convert(held, output=tmp_path / "held", **options) is held
    for model, place in ((named, "named"), (held, "held")):
        loaded = type(model).from_pretrained(tmp_path / place).eval()
        assert torch.equal(run(loaded, case.inputs()), run(model, case.inputs()))
        assert (tmp_path / place / "fffconvert.yaml").is_file()
    assert torch.equal(run(named, case.inputs()), run(held, case.inputs()))
    exact = {"backend": "reference", "dtype": "float32", "quantize_linear": "none"}
    deployed = fff.deploy(tmp_path / "named", **exact)
    torch.testing.assert_close(run(deployed, case.inputs()), run(named, case.inputs()))
    with pytest.raises(FFFError, match="is no transformers model; leave out `output`"):
        fff.convert(nn.Linear(2, 2), depth=1, output=tmp_path / "none")
