"""The kernels' own source, run on the CPU, against the reference."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime.cuda.emulation import COMPILER, SANITIZED, kernel_names, needs_compiler
from torch import Tensor
from zoo.reference import VARIANTS, integers, normals, tree_tensors

from fffconvert.runtime import ACTIVATIONS, Scales, Weights, cuda, cupy_kernels, reference
from fffconvert.runtime.backend import Passed
from fffconvert.runtime.cupy_kernels import CHUNK, SUMS_OF_BLOCK, TENSOR_TILE, TILE, TOP_LEVELS

pytestmark = needs_compiler
FORMS = ("plain", "gated leaf", "branch and gated leaf")
variants = pytest.mark.parametrize("variant", [VARIANTS[form] for form in FORMS], ids=FORMS)
regimes = pytest.mark.parametrize("few", [True, False], ids=["few tokens", "many tokens"])
EVERYTHING = {"branches": 2, "leaf_width": 3, "gated": True}


@pytest.fixture
def use(monkeypatch):
    """Chooses the regime whatever the number of tokens."""
    return lambda few: monkeypatch.setattr(cuda, "FEW_TOKENS", 10**9 if few else 0)


def cast(weights: Weights, dtype: torch.dtype) -> Weights:
    return Weights(*[w if w is None else w.to(dtype) for w in weights])


def draw_exact(tokens: int, *, dtype=torch.float32, seed=0, **shape) -> tuple[Tensor, Weights]:
    generator = torch.Generator().manual_seed(seed)
    weights = Weights(**tree_tensors(integers(generator), **shape))
    x = torch.randint(-2, 3, (tokens, shape["d_in"]), generator=generator)
    return x.to(dtype), cast(weights, dtype)


def draw_random(tokens: int, *, dtype=torch.float32, seed=0, **shape) -> tuple[Tensor, Weights]:
    generator = torch.Generator().manual_seed(seed)
    weights = Weights(**tree_tensors(normals(generator, dtype), **shape))
    return torch.randn(tokens, shape["d_in"], generator=generator).to(dtype), weights


def assert_forward_equals_reference(x: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    results = cuda.forward(x, weights, "relu")
    for actual, expected in zip(results, reference.forward(x, weights, "relu"), strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
    return results


def assert_all_equal_reference(x: Tensor, weights: Weights) -> None:
    y, logits, leaf = assert_forward_equals_reference(x, weights)
    generator = torch.Generator().manual_seed(1)
    grad_y = torch.randint(-2, 3, y.shape, generator=generator).to(y.dtype)
    grad_logits = torch.randint(-2, 3, logits.shape, generator=generator).float()
    arguments = (grad_y, grad_logits, Passed(x, weights, logits, leaf, "relu"))
    grads, expected_grads = cuda.backward(*arguments), reference.backward(*arguments)
    for actual, expected in zip(grads, expected_grads, strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


@variants
@regimes
@pytest.mark.parametrize(("width", "dtype"), [(32, torch.float32), (5, torch.float32), (64, torch.bfloat16)])
@pytest.mark.parametrize(("trees", "depth"), [(1, 0), (2, 7)])
def test_integers_are_exact(stand_in, use, few, variant, width, dtype, trees, depth):
    use(few)
    shape = {"d_in": width, "d_out": width + 32, "trees": trees, "depth": depth}
    assert_all_equal_reference(*draw_exact(19, dtype=dtype, **shape, **variant))
    assert ("token_forward" in stand_in.launches) == few
    assert ("top_levels" in stand_in.launches) == (dtype == torch.bfloat16 and not few)


BORDERS = sorted(
    {n + more for n in (1, SUMS_OF_BLOCK, TILE, TENSOR_TILE, CHUNK) for more in (-1, 0, 1)} - {0}
)


@pytest.mark.parametrize("tokens", [*BORDERS, 3 * CHUNK + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_number_of_tokens(stand_in, use, tokens, dtype):
    use(False)
    shape = {"d_in": 16, "d_out": 8, "trees": 2, "depth": 3}
    assert_all_equal_reference(*draw_exact(tokens, dtype=dtype, **shape, **EVERYTHING))
    assert ("join_runs" in stand_in.launches) == (tokens > CHUNK)


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("tree_depth", [TOP_LEVELS - 2, TOP_LEVELS - 1, TOP_LEVELS, 2 * TOP_LEVELS])
def test_depths_around_a_round_of_levels(stand_in, use, few, tree_depth):
    use(few)
    for dtype in (torch.float32, torch.bfloat16):
        assert_all_equal_reference(*draw_exact(21, dtype=dtype, d_in=8, d_out=8, trees=1, depth=tree_depth))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(1, 40),
    d_in=st.sampled_from([1, 3, 4, 8, 36, 132]),
    d_out=st.sampled_from([1, 4, 12, 260]),
    trees=st.integers(1, 9),
    depth=st.integers(0, 4),
    branches=st.integers(1, 2),
    leaf_width=st.integers(0, 70),
    gated=st.booleans(),
    few=st.booleans(),
    turns=st.integers(0, 100),
    seed=st.integers(0, 1000),
)
def test_any_shape_in_any_order_of_threads(stand_in, few, turns, **shape):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "FEW_TOKENS", 100 if few else 0)
        patch.setattr(stand_in, "seed", turns)
        assert_all_equal_reference(*draw_exact(**shape))


TYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize(("x_dtype", "row_dtype"), list(itertools.product(TYPES, TYPES)), ids=str)
@regimes
def test_every_pair_of_types(stand_in, use, few, x_dtype, row_dtype):
    use(few)
    x, weights = draw_exact(18, d_in=16, d_out=24, trees=2, depth=3, **EVERYTHING)
    assert_all_equal_reference(x.to(x_dtype), cast(weights, row_dtype))


def quantized(x_dtype=torch.float32, width=32, **options):
    """Small integers with scales that are powers of two, so that sums stay exact."""
    x, weights = draw_exact(21, d_in=width, d_out=width, trees=2, depth=7, **options)
    generator = torch.Generator().manual_seed(3)
    scales = {
        name: torch.randint(0, 2, w.shape[:-1], generator=generator).float() + 1
        for name in Scales._fields
        if (w := getattr(weights, name)) is not None
    }
    rows = {name: getattr(weights, name).to(torch.int8) for name in scales}
    bias = torch.randint(-3, 4, (width,), generator=generator)
    return x.to(x_dtype), bias.to(torch.bfloat16), weights._replace(**rows), Scales(**scales)


@pytest.mark.parametrize("width", [32, 5])
@pytest.mark.parametrize("x_dtype", TYPES, ids=str)
@regimes
def test_int8_rows(stand_in, use, few, x_dtype, width):
    use(few)
    for options in ({}, EVERYTHING):
        arguments = (*quantized(x_dtype, width, **options), "relu")
        assert torch.equal(cuda.inference(*arguments), reference.inference(*arguments))


@pytest.mark.parametrize("bias_dtype", TYPES, ids=str)
@regimes
def test_inference_with_biases_of_another_type(stand_in, use, few, bias_dtype):
    use(few)
    x, weights = draw_exact(9, d_in=8, d_out=8, trees=2, depth=2, **EVERYTHING)
    biases = {n: w.to(bias_dtype) for n, w in weights._asdict().items() if n.endswith("bias")}
    bias = torch.arange(-4.0, 4).to(bias_dtype)
    arguments = (x, bias, weights._replace(**biases), Scales(), "relu")
    assert torch.equal(cuda.inference(*arguments), reference.inference(*arguments))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(stand_in, use, activation):
    """One node per token, whose output row is 1: y is the activation of the logit."""
    s = torch.cat([torch.linspace(-25, 25, 201), torch.tensor([0.0, -0.0, 1e-8, -1e-8, 90, -90, torch.nan])])
    one = torch.ones(1, 1, 1)
    weights = Weights(one, torch.zeros(1, 1), one)
    expected = ACTIVATIONS[activation].fn(s.double()).float()
    for few in (True, False):
        use(few)
        y, logits, _ = cuda.forward(s[:, None], weights, activation)
        assert torch.equal(logits.flatten().nan_to_num(7), s.nan_to_num(7))
        torch.testing.assert_close(y[:, 0], expected, rtol=2e-6, atol=2e-7, equal_nan=True)


@regimes
def test_nan_and_zero_go_left(stand_in, use, few):
    use(few)
    for value in (0.0, torch.nan):
        x, weights = draw_exact(3, d_in=8, d_out=8, trees=2, depth=2)
        x[1] = value
        if value == 0:
            weights.in_bias.zero_()
        y, _, leaf = cuda.forward(x, weights, "relu")
        assert leaf[1].tolist() == [0, 0]
        assert torch.equal(y[::2], reference.forward(x[::2], weights, "relu")[0])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@regimes
def test_random_numbers_are_as_exact_as_plain_torch(stand_in, use, few, dtype):
    use(few)
    x, weights = draw_random(64, d_in=48, d_out=40, trees=2, depth=6, dtype=dtype, **EVERYTHING)
    truth, logits, leaves = reference.forward(x.double(), cast(weights, torch.float64), "gelu")
    clear = logits.abs().amin((1, 2)) > 1e-5
    assert clear.float().mean() > 0.95
    y, s, leaf = cuda.forward(x, weights, "gelu")
    assert torch.equal(leaf[clear], leaves[clear])
    torch.testing.assert_close(s[clear].double(), logits[clear], rtol=1e-5, atol=1e-5)
    plain, _, _ = reference.forward(x, weights, "gelu")
    error, plain_error = ((result.double() - truth)[clear].abs().max() for result in (y, plain))
    assert error <= 2 * plain_error + 1e-6

    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    passed = Passed(x[clear], weights, logits[clear].float(), leaves[clear], "gelu")
    grads = cuda.backward(grad_y[clear], torch.ones_like(s[clear]), passed)
    plain_grads = reference.backward(grad_y[clear], torch.ones_like(s[clear]), passed)
    precise = Passed(x[clear].double(), cast(weights, torch.float64), logits[clear], leaves[clear], "gelu")
    true_grads = reference.backward(grad_y[clear].double(), torch.ones_like(logits[clear]), precise)
    for grad, plain_grad, true_grad in zip(grads, plain_grads, true_grads, strict=True):
        error, plain_error = ((g.double() - true_grad).abs().max() for g in (grad, plain_grad))
        assert error <= 2 * plain_error + 1e-5


def test_gradients_are_the_same_in_any_order_of_threads(stand_in):
    x, weights = draw_random(2 * CHUNK + 9, d_in=8, d_out=8, trees=1, depth=3, **EVERYTHING)
    y, logits, leaf = reference.forward(x, weights, "silu")
    runs = []
    for stand_in.seed in (1, 2):
        runs.append(cuda.backward(y, logits, Passed(x, weights, logits, leaf, "silu")))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_only_visited_rows_receive_a_gradient(stand_in):
    x, weights = draw_random(3, d_in=8, d_out=8, trees=1, depth=4)
    y, logits, leaf = cuda.forward(x, weights, "silu")
    grads = Weights(*cuda.backward(y, logits, Passed(x, weights, logits, leaf, "silu"))[1:])
    visited = {(int(end) + 2**5 >> up) - 1 for end in leaf[:, 0] for up in range(1, 6)}
    for grad in (grads.in_weight, grads.in_bias, grads.out_weight):
        assert {place[1] for place in grad.nonzero().tolist()} == visited


@regimes
def test_tokens_that_do_not_fit_shared_memory(stand_in, use, few):
    use(few)
    stand_in.shared = 48 << 10
    assert_all_equal_reference(*draw_exact(17, d_in=1024, d_out=16, trees=1, depth=2))
    x, weights = draw_exact(3, d_in=4, d_out=4, trees=1, depth=0, leaf_width=12300)
    assert_forward_equals_reference(x, weights)
    assert stand_in.launches[-1] == "sum_rows"


def test_every_kernel_once(stand_in, use):
    """What the address sanitizer watches: all kernels, with widths and numbers of tokens that leave rests."""
    for few, width, dtype in (
        (True, 36, torch.float32),
        (False, 40, torch.bfloat16),
        (False, 3, torch.float32),
    ):
        use(few)
        shape = {"d_in": width, "d_out": width, "trees": 1, "depth": TOP_LEVELS}
        assert_all_equal_reference(*draw_exact(CHUNK + 3, dtype=dtype, **shape, **EVERYTHING))
    arguments = (*quantized(torch.float16), "relu")
    assert torch.equal(cuda.inference(*arguments), reference.inference(*arguments))
    assert set(stand_in.launches) == kernel_names()


MUTATIONS = {
    "a branch taken too early": (
        "+ (s > 0.0f);\n      const int row",
        "+ (s > -1.5f);\n      const int row",
        True,
    ),
    "the last numbers of a row": ("i < width; i += threads", "i + VECTOR < width; i += threads", True),
    "a level too few": ("k < last; ++k", "k + 1 < last; ++k", False),
    "the wrong child": ("+ (s > 0.0f);\n    }", "+ (s < 0.0f);\n    }", False),
    "no barrier after ranks": (
        "sorted[rank] = me;\n    }\n    __syncthreads();",
        "sorted[rank] = me;\n    }",
        False,
    ),
    "no barrier after paths": ("(s > 0.0f);\n    }\n    __syncthreads();", "(s > 0.0f);\n    }", False),
    "a row not loaded anew": ("g == 0 || row[g] != row[g > 0 ? g - 1 : 0]", "g == 0", False),
    "a row of a sum left out": ("inside && j < some", "inside && j + 1 < some", False),
    "a neighbour of a chunk": ("position = start + i - 1;", "position = start + i;", False),
    "a part of a run left out": ("other = chunk + 1;", "other = chunk + 2;", False),
    "the row of the other branch": ("(leaf >> (levels - 1 - j))", "(leaf >> (levels - 1 - j) ^ 1)", False),
    "a fragment": ("lane / 4 + i / 2 * 8]", "lane / 4 + i % 2 * 8]", False),
    "the last token of a leaf": ("line < last", "line + 1 < last", False),
}


@pytest.mark.parametrize(("correct", "wrong", "few"), MUTATIONS.values(), ids=MUTATIONS)
def test_mistakes_planted_in_a_kernel_are_found(stand_in, use, correct, wrong, few):
    def edit(source: str) -> str:
        assert correct in source
        return source.replace(correct, wrong)

    use(few)
    tensor = "i % 2" in wrong or "line" in wrong
    options = {"dtype": torch.bfloat16, "leaf_width": 5, "depth": 2} if tensor else {"depth": 7}
    operands = draw_exact(2 * CHUNK + 3, d_in=40, d_out=40, trees=1, branches=2, **options)
    assert_all_equal_reference(*operands)
    stand_in.edit = edit
    cupy_kernels._compiled.cache_clear()
    with pytest.raises(AssertionError):
        assert_all_equal_reference(*operands)


def run_sanitized(tests: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run tests of this file in a process that watches every access to memory."""
    libraries = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [COMPILER, f"-print-file-name={name}"]
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        if not os.path.isabs(found):
            pytest.skip(f"the compiler has no {name}")
        libraries.append(os.path.realpath(found))
    environment |= {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0", "FFF_SANITIZE": "1"}
    command = [sys.executable, "-m", "pytest", "-qs", "-n0", "-p", "no:cacheprovider", "-k", tests, __file__]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.skipif(SANITIZED, reason="is the outer of two runs")
def test_the_address_sanitizer_finds_nothing():
    done = run_sanitized("test_every_kernel_once")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "passed" in done.stdout


@pytest.mark.skipif(SANITIZED, reason="is the outer of two runs")
def test_the_address_sanitizer_finds_a_planted_access_beyond_a_row():
    planted = "i < width; i += 32 * VECTOR|i <= width; i += 32 * VECTOR"
    done = run_sanitized("test_every_kernel_once", FFF_PLANT=planted)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stdout + done.stderr
