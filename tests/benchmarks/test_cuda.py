"""What of the benchmark on CUDA can be checked on a CPU: counting, waiting, comparing, the tables."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.cuda.emulation import installed, needs_compiler
from typer.testing import CliRunner

from fffconvert.benchmarks import card, cuda, layer, timing
from fffconvert.benchmarks.card import Card, fused
from fffconvert.benchmarks.check import WrongOutputError
from fffconvert.benchmarks.cuda import cuda_rows
from fffconvert.benchmarks.dense import DenseFFN
from fffconvert.benchmarks.settings import LayerBench
from fffconvert.benchmarks.timing import measure
from fffconvert.benchmarks.traffic import parameter_bytes, visited_bytes
from fffconvert.benchmarks.workload import workloads
from fffconvert.cli import app
from fffconvert.errors import FFFError
from fffconvert.runtime import Inference, Scales, Weights, reference
from fffconvert.runtime import cuda as kernels
from fffconvert.runtime.backend import Status
from fffconvert.runtime.rows import store_rows

NO_DRIVER = Status(False, "no NVIDIA driver found; install one, or use another backend")
QUICK: dict[str, Any] = {
    "shape": (16, 48),
    "forests": ((2, 3),),
    "sizes": (1, 70),
    "device": "cuda",
    "backends": ("reference",),
    "compile": False,
    "seconds": 1e-3,
    "repeats": 3,
}
FLOATS = ("float32", "float16", "bfloat16")


def pretend(monkeypatch: pytest.MonkeyPatch, found: Status) -> None:
    monkeypatch.setattr(kernels, "status", lambda: found)


@pytest.fixture
def pretended(monkeypatch):
    """Settings believe in a card; what is measured runs on the CPU."""
    pretend(monkeypatch, Status(True, "CuPy on a card"))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench-layer", "--device", "cuda", *arguments])


def test_no_card_is_one_line_and_status_2(monkeypatch):
    pretend(monkeypatch, NO_DRIVER)
    result = run("--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [f"fffconvert: --device cuda cannot run here: {NO_DRIVER.reason}"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": True}, "`train` is measured on the CPU alone"),
        ({"threads": (1, 2)}, "`threads` is measured on the CPU alone"),
        ({"backends": ("cpu",)}, "`backends` holds 'cpu'; expected some of reference,cupy"),
        ({"dtypes": ("half",)}, "expected some of float32,float16,bfloat16,int8"),
    ],
)
def test_what_has_no_meaning_on_cuda_is_refused(pretended, change, message):
    with pytest.raises(FFFError, match=message):
        LayerBench(**{**QUICK, **change})


def test_every_backend_has_its_row_types(pretended):
    found = set(LayerBench(**{**QUICK, "backends": ()}).variants)
    assert found == {("reference", dtype) for dtype in FLOATS} | {
        ("cupy", dtype) for dtype in (*FLOATS, "int8")
    }


def test_each_call_starts_and_ends_with_an_idle_device():
    events: list[str] = []
    own = Card("cpu", lambda: events.append("wait"))
    found = measure({"one": own.contestant(lambda x: events.append(x), ["call"])}, seconds=1e-9, repeats=4)
    assert found["one"].calls == 4
    assert events == ["wait", "call", "wait"] * (len(events) // 3)
    assert len(events) >= 3 * 5


def test_waiting_is_inside_the_time(monkeypatch):
    now = iter(range(10**6))  # microseconds: waiting takes one, and so does each look at the clock
    events: list[int] = []
    monkeypatch.setattr(timing, "perf_counter_ns", lambda: 1000 * next(now))
    own = Card("cpu", lambda: events.append(next(now)))
    found = measure({"one": own.contestant(lambda x: None, [0])}, seconds=1e-9, repeats=3)["one"]
    assert found.p20_us == found.p80_us == 2


@settings(max_examples=40, deadline=None)
@given(
    trees=st.integers(1, 3),
    depth=st.integers(0, 4),
    branches=st.sampled_from((1, 2)),
    width=st.integers(0, 3),
    tokens=st.integers(1, 12),
    int8=st.booleans(),
    seed=st.integers(0, 99),
)
def test_bytes_equal_those_of_a_walk_in_plain_python(trees, depth, branches, width, tokens, int8, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    d_in, d_out, nodes = 4, 5, 2 ** (depth + 1) - 1
    leaves = (trees, nodes + 1, width)
    weights = Weights(
        normal(trees, nodes, d_in),
        normal(trees, nodes),
        normal(trees, branches * nodes, d_out),
        *((normal(trees, nodes + 1, d_out), normal(*leaves, d_in), normal(*leaves)) if width else ()),
        leaf_out_weight=normal(*leaves, d_out) if width else None,
    )
    x = normal(tokens, d_in)
    stored, scales = store_rows(weights, torch.int8) if int8 else (weights, Scales())
    _, _, leaf = reference.forward(x, weights, "gelu")

    read = set()
    for token in x:
        for tree in range(trees):
            node = 0
            for _ in range(depth + 1):
                right = float(weights.in_weight[tree, node] @ token + weights.in_bias[tree, node]) > 0
                row = 2 * node + right if branches == 2 else node
                read |= {("in", tree, node), ("out", tree, row)}
                node = 2 * node + 1 + right
            read.add(("leaf", tree, node))
    size, scale = (1, 4) if int8 else (4, 0)
    leaf_bytes = d_out * size + scale + width * ((d_in + d_out) * size + 2 * scale + 4) if width else 0
    cost = {"in": d_in * size + scale + 4, "out": d_out * size + scale, "leaf": leaf_bytes}
    assert visited_bytes(stored, scales, leaf) == sum(cost[kind] for kind, _, _ in read)


def test_the_fused_block_is_the_block():
    block, x = DenseFFN(8, 12), torch.randn(3, 8)
    torch.testing.assert_close(fused(block)(x), block(x), rtol=0, atol=2e-3)
    assert parameter_bytes(block) == 4 * (2 * 8 * 12 + 8 + 12)


@pytest.fixture
def found(pretended):
    settings, problems = LayerBench(**QUICK), []
    (workload,) = workloads(settings)
    rows = list(cuda_rows(workload, settings, problems, Card("cpu", lambda: None), card_gb_s=50.0))
    assert problems == []
    return rows


def test_rows_hold_together(found):
    for tokens in (1, 70):
        rows = {
            (row["backend"], row["dtype"], row["variant"]): row for row in found if row["tokens"] == tokens
        }
        dense = [(s, d, v) for s in ("block", "tree_size") for d in FLOATS for v in ("eager", "fused")]
        assert rows.keys() == {("reference", dtype, None) for dtype in FLOATS} | set(dense)
        for (_, dtype, _), row in rows.items():
            assert (
                row["threads"] is row["page_faults"] is row["page_fault_us"] is row["warm_output_us"] is None
            )
            assert row["gb_s"] == pytest.approx(row["bytes"] / row["median_us"] / 1e3)
            assert row["share_of_bandwidth"] == pytest.approx(row["gb_s"] / 50)
            for size in ("block", "tree_size"):
                forms = {v: rows[size, dtype, v]["median_us"] for v in ("eager", "fused")}
                assert row[f"speedup_vs_{size}"] == pytest.approx(min(forms.values()) / row["median_us"])
                assert row[f"speedup_vs_fused_{size}"] == pytest.approx(forms["fused"] / row["median_us"])
    one = next(row for row in found if row["tokens"] == 1 and row["backend"] == "reference")
    # a token visits 4 nodes in each of 2 trees; the output bias, its input and its output
    assert one["bytes"] == 2 * 4 * (2 * 16 + 1) * 4 + 16 * 4 + 2 * 16 * 4
    block = next(row for row in found if row["tokens"] == 70 and row["backend"] == "block")
    assert block["bytes"] == (2 * 16 * 48 + 48 + 16) * 4 + 2 * 70 * 16 * 4


def test_int8_rows_are_checked_and_compared_in_bfloat16(pretended, monkeypatch):
    real = cuda.deploy
    monkeypatch.setattr(
        cuda, "deploy", lambda layer, backend, dtype: real(layer, backend="reference", dtype=dtype)
    )
    settings = LayerBench(**{**QUICK, "backends": ("cupy",), "dtypes": ("int8",), "sizes": (3,)})
    (workload,) = workloads(settings)
    rows = list(cuda_rows(workload, settings, [], Card("cpu", lambda: None), card_gb_s=50.0))
    own = next(row for row in rows if row["backend"] == "cupy")
    assert {row["dtype"] for row in rows if row is not own} == {"bfloat16"}
    assert own["speedup_vs_tree_size"] > 0
    assert own["max_error"] < 0.02


def emulated(layer: Any, device: str, backend: str, dtype: str) -> Any:
    """Deployed as on a card, with the kernels' source compiled for the CPU."""
    layer = cuda.deploy(layer, backend="reference", dtype="int8" if dtype == "int8" else "auto")
    rows = store_rows(layer.weights, torch.int8) if dtype == "int8" else (layer.weights, Scales())

    class Emulated(Inference):
        def __call__(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
            return kernels.inference(x, layer.fff_bias, *rows, layer.spec.activation)

    layer.inference = Emulated()
    return layer


@needs_compiler
def test_the_kernels_own_outputs_pass_the_check(pretended, monkeypatch):
    monkeypatch.setattr(cuda, "_deployed", emulated)
    monkeypatch.setattr(kernels, "FEW_TOKENS", 8)
    settings = LayerBench(**{**QUICK, "backends": ("cupy",), "sizes": (2, 70), "repeats": 1})
    (workload,) = workloads(settings)
    with installed():
        rows = list(cuda_rows(workload, settings, [], Card("cpu", lambda: None), card_gb_s=50.0))
    errors = {(r["dtype"], r["tokens"]): r["max_error"] for r in rows if r["backend"] == "cupy"}
    assert errors.keys() == set(itertools.product((*FLOATS, "int8"), (2, 70)))
    assert max(errors["float32", 2], errors["float32", 70]) < 1e-5
    assert errors["bfloat16", 70] > 1e-4  # outputs are rounded


def test_wrong_outputs_stop_the_run(pretended, monkeypatch):
    real = cuda.deploy

    def wrong(layer: Any, **rest: Any) -> Any:
        layer.fff_out_weight.data[0, 0] *= 1.2
        return real(layer, **rest)

    monkeypatch.setattr(cuda, "deploy", wrong)
    settings = LayerBench(**QUICK)
    (workload,) = workloads(settings)
    with pytest.raises(WrongOutputError, match="backend reference with float32 rows"):
        list(cuda_rows(workload, settings, [], Card("cpu", lambda: None), card_gb_s=50.0))


def test_no_fused_operator_is_a_problem_and_not_the_end(pretended, monkeypatch):
    def broken(block: DenseFFN) -> Any:
        def call(x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no such kernel\nmore")

        return call

    monkeypatch.setattr(cuda, "fused", broken)
    settings, problems = LayerBench(**{**QUICK, "dtypes": ("float32",), "sizes": (2,)}), []
    (workload,) = workloads(settings)
    rows = list(cuda_rows(workload, settings, problems, Card("cpu", lambda: None), card_gb_s=50.0))
    assert {row["variant"] for row in rows} == {None, "eager"}
    assert all(row["speedup_vs_fused_block"] is None for row in rows)
    assert problems[0] == "no fused linear-GELU (block, torch.float32): RuntimeError: no such kernel"


@pytest.mark.parametrize("as_json", [True, False])
def test_the_published_figures_stand_beside_the_result(pretended, monkeypatch, as_json):
    described = {"card": "a card", "peak_gb_s": None, "copy_gb_s": 50.0}
    monkeypatch.setattr(layer, "_card", lambda: described)
    monkeypatch.setattr(layer.card, "Card", lambda: Card("cpu", lambda: None))
    quick = [
        "--shape",
        "16x48",
        "--forests",
        "1x3",
        "--backends",
        "reference",
        "--no-compile",
        "--sizes",
        "1,5",
    ]
    quick += ["--seconds", "0.001", "--repeats", "3", *(["--json"] if as_json else [])]
    result = run(*quick)
    assert result.exit_code == 0, result.output
    if as_json:
        document = json.loads(result.stdout)
        assert document["published"] == card.PUBLISHED
        assert document["settings"]["device"] == "cuda"
        assert document["machine"]["card"] == described
        assert all(one["geomean_vs_fused_tree_size"] > 0 for one in document["summary"])
        return
    for word in ("1x3, 16x48, inference, random inputs, CUDA", "GB/s", "published: 3.15x and 4.1x", "a card"):
        assert word in result.stdout
    assert "here over the fused block (1x3, random inputs, reference, bfloat16): " in result.stdout
    assert "page faults" not in result.stdout


def test_copying_counts_reading_and_writing(monkeypatch):
    monkeypatch.setattr(card, "COPIED_BYTES", 1 << 20)
    times: dict[str, Any] = {}

    def kept(*args: Any, **options: Any) -> Any:
        times.update(measure(*args, **options))
        return times

    monkeypatch.setattr(card, "measure", kept)
    rate = Card("cpu", lambda: None).copy_gb_s()
    assert rate == pytest.approx(2 * (1 << 20) / times["copy"].median_us / 1e3)
