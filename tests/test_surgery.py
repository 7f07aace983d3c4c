"""Replacing blocks by exact copies of themselves changes nothing that the model does."""

from __future__ import annotations

import copy
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from zoo import ARCHITECTURES, HANDWRITTEN, Case
from zoo.check import behaviour, check, difference, differences

from fffconvert import surgery
from fffconvert.errors import FFFError
from fffconvert.location import Placement, Position, Sites, locate
from fffconvert.planning import FFFSpec
from fffconvert.standins import LastProjection
from fffconvert.tree import FFFLayer

CASES = [*ARCHITECTURES, *HANDWRITTEN]
BY_NAME = {case.name: case for case in CASES}
WITH_BLOCKS = [case for case in CASES if case.blocks]
GENERATING = [case for case in ARCHITECTURES if case.generate and case.blocks]
EACH_POSITION = {"llama": Position.MODULE, "bert": Position.SPLIT, "bart": Position.HANDOVER}


def replaced(case: Case) -> nn.Module:
    """The case's model with every block replaced by an exact copy of itself."""
    model = case.build()
    sites = locate(model, case.inputs())
    surgery.replace(model, {site: site.dense() for site in sites})
    return model


@pytest.mark.parametrize("case", WITH_BLOCKS, ids=str)
def test_exact_copies_give_the_same_outputs_and_gradients(case: Case):
    outcome = check(case.build(), case.inputs(), train=not case.random)
    assert outcome.status == "replaced exactly", outcome
    assert outcome.detail.startswith(f"{sum(e.count for e in case.blocks)} blocks")


@pytest.mark.parametrize("case", GENERATING, ids=str)
def test_generate_gives_the_same_tokens(case: Case):
    model, inputs = case.build(), case.inputs()
    inputs = {k: v for k, v in inputs.items() if k not in {"decoder_input_ids", "labels"}}

    def tokens(model: nn.Module) -> torch.Tensor:
        torch.manual_seed(0)
        return model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)

    expected = tokens(model)
    assert torch.equal(tokens(replaced(case)), expected)


@pytest.mark.parametrize(("name", "position"), EACH_POSITION.items(), ids=EACH_POSITION)
class TestEachPosition:
    def test_is_as_named(self, name: str, position: Position):
        case = BY_NAME[name]
        assert {s.placement.position for s in locate(case.build(), case.inputs())} == {position}

    def test_takes_other_shapes(self, name: str, position: Position):
        case = BY_NAME[name]
        inputs = {k: torch.cat([v, v, v], 0)[:, :3] for k, v in case.inputs().items()}
        torch.testing.assert_close(
            behaviour(case.build(), inputs, train=False), behaviour(replaced(case), inputs, train=False)
        )

    def test_trains_with_gradient_checkpointing(self, name: str, position: Position):
        case = BY_NAME[name]
        results = []
        for model in (case.build(), replaced(case)):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            results.append(behaviour(model, case.inputs() | {"use_cache": False}, train=True))
        assert max(differences(*results).values()) <= 1e-5

    def test_moves_to_other_dtypes(self, name: str, position: Position):
        case = BY_NAME[name]
        expected = behaviour(case.build().to(torch.float64), case.inputs(), train=False)
        found = behaviour(replaced(case).to(torch.float64), case.inputs(), train=False)
        assert {t.dtype for t in found["outputs"] if t.is_floating_point()} == {torch.float64}
        assert max(differences(expected, found).values()) <= 1e-7

    def test_takes_on_mode_and_dtype_of_what_was_there(self, name: str, position: Position):
        case = BY_NAME[name]
        model = case.build().to(torch.bfloat16).train()
        sites = locate(model, case.inputs())
        layers = {site: nn.Linear(site.d_model, site.d_model, dtype=torch.float64) for site in sites}
        surgery.replace(model, layers)
        assert all(layer.training and layer.weight.dtype == torch.bfloat16 for layer in layers.values())

    def test_compiles_to_one_graph(self, name: str, position: Position):
        case = BY_NAME[name]
        model = replaced(case)
        inputs = case.inputs() | {"use_cache": False} if name != "bert" else case.inputs()
        expected = behaviour(model, inputs, train=False)["outputs"]
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with torch.no_grad():
            found = compiled(**inputs)[0]
        assert difference(expected[0], found) <= 1e-5

    def test_stand_ins_answer_for_the_projections(self, name: str, position: Position):
        case = BY_NAME[name]
        model = replaced(case)
        site = locate(case.build(), case.inputs())[0]
        for path in site.placement.exit:
            assert model.get_submodule(path).weight.dtype == torch.float32
            assert model.get_submodule(path).bias is None
            assert not list(model.get_submodule(path).parameters())


@pytest.mark.parametrize("name", EACH_POSITION)
def test_threads_may_call_a_model_side_by_side(name: str):
    case = BY_NAME[name]
    model = replaced(case)

    @torch.no_grad()
    def call(tokens: int) -> torch.Tensor:
        ids = torch.arange(5, 5 + tokens)[None]
        return model(input_ids=ids, use_cache=False)[0] if name != "bert" else model(input_ids=ids)[0]

    lengths = [3 + n % 17 for n in range(200)]
    expected = {tokens: call(tokens) for tokens in set(lengths)}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(call, lengths))
    assert all(torch.equal(y, expected[tokens]) for tokens, y in zip(lengths, found, strict=True))


def test_a_call_that_fails_halfway_leaves_the_next_one_alone():
    case = BY_NAME["bart"]
    model = replaced(case)
    expected = behaviour(model, case.inputs(), train=False)["outputs"]
    last = next(m for m in model.modules() if isinstance(m, LastProjection))
    handle = last.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        model(**case.inputs())
    handle.remove()
    found = behaviour(model, case.inputs(), train=False)["outputs"]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_restore_puts_the_very_same_modules_back():
    case = BY_NAME["bart"]
    model = case.build()
    before = {name: id(module) for name, module in model.named_modules(remove_duplicate=False)}
    sites = locate(model, case.inputs())
    surgery.replace(model, {sites[0]: sites[0].dense()})
    surgery.replace(model, {site: site.dense() for site in sites[1:]})
    assert {name: id(m) for name, m in model.named_modules(remove_duplicate=False)} != before
    surgery.restore(model)
    assert {name: id(m) for name, m in model.named_modules(remove_duplicate=False)} == before


def test_restore_refuses_what_it_never_replaced():
    case = BY_NAME["bert"]
    with pytest.raises(FFFError, match="no original blocks"):
        surgery.restore(case.build())
    with pytest.raises(FFFError, match="copy"):
        surgery.restore(copy.deepcopy(replaced(case)))


def test_a_shared_block_is_replaced_everywhere():
    model = replaced(BY_NAME["albert"])
    kinds = {type(m).__name__ for m in model.modules()}
    assert "FirstProjection" in kinds or "DenseBlock" in kinds
    case = BY_NAME["shared-thrice"]
    assert check(case.build(), case.inputs()).status == "replaced exactly"


@pytest.mark.parametrize("twice", [False, True], ids=["unknown module", "replaced twice"])
def test_checks_come_before_any_change(twice: bool):
    case = BY_NAME["bert"]
    model = case.build()
    sites = locate(model, case.inputs())
    if twice:
        surgery.replace(model, {sites[1]: sites[1].dense()})
        wrong = sites[1]
    else:
        placement = dataclasses.replace(sites[1].placement, exit=("bert.nowhere",))
        wrong = dataclasses.replace(sites[1], placement=placement)
    before = {name: id(module) for name, module in model.named_modules()}
    with pytest.raises(FFFError, match="already replaced" if twice else "no module 'bert.nowhere'"):
        surgery.replace(model, {sites[0]: sites[0].dense(), wrong: nn.Identity()})
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_verify_passes_over_a_block_that_is_not_what_it_seems():
    case = BY_NAME["llama"]
    model = case.build()
    sites = locate(model, case.inputs())
    wrong = dataclasses.replace(sites[0], hidden=torch.fx.symbolic_trace(lambda g, u: g + u))
    verified = surgery.verify(model, Sites([wrong, *sites[1:]]), case.inputs())
    assert [site.name for site in verified] == [site.name for site in sites[1:]]
    assert verified.skipped[-1].name == wrong.name
    assert "exact copy" in verified.skipped[-1].reason


def test_verify_passes_over_a_block_whose_replacement_raises():
    case = BY_NAME["llama"]
    model = case.build()
    sites = locate(model, case.inputs())
    wrong = dataclasses.replace(sites[0], hidden=torch.fx.symbolic_trace(lambda g: g))
    verified = surgery.verify(model, Sites([wrong]), case.inputs())
    assert not verified
    assert "TypeError" in verified.skipped[0].reason


def test_the_fused_path_of_torchs_encoder_stays_away_with_padding():
    layer = nn.TransformerEncoderLayer(24, 2, 40, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 5, 24)
    padding = torch.tensor([[False] * 5, [False, False, False, True, True]])
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)
        sites = locate(model, {"src": x})
        surgery.replace(model, {site: site.dense() for site in sites})
        found = model(x, src_key_padding_mask=padding)
        torch.testing.assert_close(found[~padding], expected[~padding], rtol=1e-5, atol=1e-5)
        surgery.restore(model)
        assert model.enable_nested_tensor
        assert torch.equal(model(x, src_key_padding_mask=padding), expected)


def test_last_projection_without_its_first_is_an_error():
    model = replaced(BY_NAME["bart"])
    stand_in = next(m for m in model.modules() if isinstance(m, LastProjection))
    with pytest.raises(RuntimeError, match="before its first"):
        stand_in(torch.zeros(1, 2))


@pytest.mark.parametrize("case", [BY_NAME[name] for name in (*EACH_POSITION, "shared-thrice")], ids=str)
def test_layers_are_found_at_the_blocks_whose_places_they_took(case: Case):
    model = case.build()
    assert surgery.layers_of(model) == {}
    sites = locate(model, case.inputs())
    specs = (FFFSpec(s.d_model, s.d_model, 0, feature_axis=s.placement.feature_axis) for s in sites)
    layers = {site: FFFLayer(spec) for site, spec in zip(sites, specs, strict=True)}
    surgery.replace(model, layers)
    outer = nn.ModuleDict({"outer": copy.deepcopy(model)})
    found, inside = surgery.layers_of(model), surgery.layers_of(outer)
    assert len(found) == len(inside) == len(sites)
    for site, layer in layers.items():
        placed = found[site.name]
        assert placed.layer is layer is model.get_submodule(placed.path)
        assert same_places(placed.placement, site.placement)
        renamed = inside[f"outer.{site.name}"]
        assert renamed.path == f"outer.{placed.path}"
        assert renamed.placement.exit == tuple(f"outer.{path}" for path in placed.placement.exit)


def same_places(one: Placement, other: Placement) -> bool:
    """Whether two placements are the same; in which order modules are passed over does not matter."""
    values = [dataclasses.replace(place, passed=tuple(sorted(place.passed))) for place in (one, other)]
    return values[0] == values[1]


def test_a_name_is_looked_for_with_and_without_the_prefix_of_the_head():
    model = BY_NAME["bert"].build()
    assert "bert.encoder" in surgery.names_of("encoder", model)
    assert "encoder" in surgery.names_of("bert.encoder", model.bert)
    assert surgery.names_of("0.up", nn.Sequential())[0] == "0.up"
