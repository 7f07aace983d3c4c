from __future__ import annotations

import copy
import pickle
import threading
import time

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fffconvert.errors import FFFError
from fffconvert.runtime import int8_linear
from fffconvert.runtime.int8_linear import Int8Linear, Int8Part, Together, best_engine, quantized_engine

ENGINES = [
    name
    for name in ("onednn", "x86", "fbgemm", "qnnpack")
    if name in torch.backends.quantized.supported_engines
    and (name != "onednn" or torch.cpu._is_vnni_supported())  # its sums overflow without these instructions
]


@pytest.fixture(autouse=True, params=ENGINES)
def engine(request, monkeypatch):
    """Each engine that is right on this processor: on a large one also those that a small one uses."""
    monkeypatch.setattr(int8_linear, "best_engine", lambda: request.param)


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """Independent of torch's quantized tensors: a scale for each output, the largest element is 127."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale.clamp_min(1e-30)).round().clamp(-127, 127) * scale


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 48), (2, 3, 48), (0, 48)])
def test_is_the_linear_map_within_the_rounding(bias, shape):
    torch.manual_seed(0)
    dense = nn.Linear(48, 32, bias=bias)
    made = Int8Linear.like(dense).eval()
    x = torch.randn(shape)
    exact = nn.functional.linear(x, rounded(dense.weight.detach()), dense.bias)
    # Inputs are rounded to 256 steps of their range, or 128 where sums could overflow otherwise.
    step = (x.max() - x.min()) / 127 if x.numel() else torch.tensor(0.0)
    bound = 0.5 * step * dense.weight.abs().sum(1).max() + 1e-5
    assert made(x).shape == exact.shape
    assert (made(x) - exact).abs().le(bound.item()).all()


def test_takes_the_dtype_of_its_input_and_needs_no_gradient():
    made = Int8Linear(torch.randn(4, 8)).eval()
    x = torch.randn(3, 8, dtype=torch.bfloat16, requires_grad=True)
    assert made(x).dtype == torch.bfloat16
    assert not list(made.parameters())


def test_a_row_of_zeros_stays_one():
    weight = torch.randn(3, 16)
    weight[1] = 0
    assert Int8Linear(weight).eval()(torch.randn(4, 16))[:, 1].eq(0).all()


@pytest.mark.parametrize("module", [nn.Linear(6, 4), nn.Linear(6, 4, bias=False), Conv1D(4, 6)])
def test_what_is_saved_is_the_rounded_weight_in_the_old_form(module):
    state = Int8Linear.like(module).state_dict()
    assert {name: t.shape for name, t in state.items()} == {
        name: t.shape for name, t in module.state_dict().items()
    }
    dense = copy.deepcopy(module)
    dense.load_state_dict(state)
    again = Int8Linear.like(dense)
    assert torch.equal(again.weight, state["weight"])  # rounding once more changes nothing
    step = module.weight.abs().max() / 127
    assert (dense.weight - module.weight).abs().max() <= step


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(twin):
    made = Int8Linear.like(Conv1D(4, 6)).eval()
    x = torch.randn(5, 6)
    assert torch.equal(twin(made)(x), made(x))


def test_other_modules_are_left_alone():
    class Special(nn.Linear):
        pass

    assert Int8Linear.like(Special(2, 2)) is None
    assert Int8Linear.like(nn.LayerNorm(2)) is None


def test_training_is_refused():
    with pytest.raises(FFFError, match="cannot be trained"):
        Int8Linear(torch.randn(2, 2)).train()(torch.randn(1, 2))


def test_the_engine_is_one_that_torch_has():
    assert best_engine() in torch.backends.quantized.supported_engines


@pytest.mark.parametrize("bias", [True, False])
def test_maps_of_one_input_computed_together_give_the_same(bias):
    torch.manual_seed(0)
    maps = [Int8Linear.like(nn.Linear(16, width, bias=bias)).eval() for width in (8, 4, 4)]
    together = Together(maps)
    parts = [Int8Part(one, together, index) for index, one in enumerate(maps)]
    first, second = torch.randn(3, 16), torch.randn(3, 16)
    for x in (first, second, first):
        for part, one in zip(parts, maps, strict=True):
            torch.testing.assert_close(part(x), one(x))
    assert not together._latest.__dict__  # nothing is kept once all were asked
    # Asked out of turn, twice, or for another input, they still answer for what they are given.
    for part, one, x in ((1, 1, first), (1, 1, first), (0, 0, second), (2, 2, first)):
        torch.testing.assert_close(parts[part](x), maps[one](x))
    for part, one in zip(parts, maps, strict=True):
        assert torch.equal(part.state_dict()["weight"], one.state_dict()["weight"])


def test_threads_that_pack_at_once_keep_their_engines():
    usual, wrong, barrier = torch.backends.quantized.engine, [], threading.Barrier(4)

    def work(name: str) -> None:
        barrier.wait()
        for _ in range(30):
            with quantized_engine(name):
                time.sleep(1e-4)
                if torch.backends.quantized.engine != name:
                    wrong.append(name)

    names = [ENGINES[0], ENGINES[-1]] * 2
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert torch.backends.quantized.engine == usual


def test_maps_computed_together_may_be_asked_by_several_threads():
    torch.manual_seed(0)
    maps = [Int8Linear(torch.randn(8, 16)).eval() for _ in range(3)]
    together = Together(maps)
    parts = [Int8Part(one, together, index) for index, one in enumerate(maps)]
    wrong = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(50):
            x = torch.randn(4, 16, generator=generator)
            if not all(
                torch.allclose(part(x), one(x), atol=1e-5) for part, one in zip(parts, maps, strict=True)
            ):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
