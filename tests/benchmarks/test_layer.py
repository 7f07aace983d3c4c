from __future__ import annotations

import itertools
import math
import statistics
import sys
from typing import Any

import pytest
import torch

from fffconvert.benchmarks import bench_layer, check, contestants, dense, machine
from fffconvert.benchmarks.check import WrongOutputError
from fffconvert.benchmarks.depths import draw, sweep
from fffconvert.benchmarks.settings import LayerBench
from fffconvert.benchmarks.workload import DISTINCT_TOKENS, random_workload
from fffconvert.errors import FFFError
from fffconvert.planning import FFFSpec
from fffconvert.processor import Cpu

QUICK: dict[str, Any] = {
    "shape": (16, 48),
    "forests": ((1, 3), (2, 2)),
    "sizes": (1, 5),
    "backends": ("reference",),
    "compile": False,
    "seconds": 1e-3,
    "repeats": 3,
}
DENSE = [
    (size, dtype, "eager") for size in ("block", "tree_size") for dtype in ("float32", "bfloat16", "int8")
]
CONTESTANTS = {("reference", "float32", None), *DENSE}


def processor(*features: str) -> Cpu:
    return Cpu("some", 1, 1, "AVX2", features)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "cpu", lambda: processor("avx2", "avx512_bf16"))
        return bench_layer(**QUICK)


def test_every_contestant_has_a_row_at_every_point(found):
    seen: dict[tuple[str, int], set[Any]] = {}
    for row in found["rows"]:
        kind = row["backend"], row["dtype"], row["variant"]
        seen.setdefault((row["layer"], row["tokens"]), set()).add(kind)
    assert seen == dict.fromkeys(itertools.product(("1x3", "2x2"), (1, 5)), CONTESTANTS)


def test_rows_hold_together(found):
    for row in found["rows"]:
        assert 0 < row["p20_us"] <= row["median_us"] <= row["p80_us"]
        assert row["calls"] >= 3
        assert (row["inputs"], row["mode"], row["threads"]) == ("random", "inference", 1)
        same = {
            other["backend"]: other["median_us"]
            for other in found["rows"]
            if (other["layer"], other["tokens"]) == (row["layer"], row["tokens"])
            and other["dtype"] == "float32"
        }
        for name in ("block", "tree_size"):
            assert row[f"speedup_vs_{name}"] == pytest.approx(same[name] / row["median_us"])
            assert row[f"{name}_baseline"] == "eager"
        for dtype in ("int8", "bfloat16"):
            assert (row[f"speedup_vs_{dtype}_dense"] is None) == (row["dtype"] != dtype)
        if row["backend"] == "reference":
            assert 0 <= row["max_error"] < 1e-5
            assert (row["left_out"], row["path_agreement"]) == (0, 1)
        else:
            assert row["max_error"] is row["share_of_bound"] is None


def test_emulated_baselines_are_rows_with_a_reason(monkeypatch, capsys):
    monkeypatch.setattr(dense, "cpu", lambda: processor("avx2", "f16c"))
    found = bench_layer(**{**QUICK, "forests": ((1, 3),), "sizes": (1024,)})
    rows = {(row["backend"], row["dtype"]): row for row in found["rows"]}
    assert rows.keys() == {(backend, dtype) for backend, dtype, _ in CONTESTANTS}
    skipped = {key for key, row in rows.items() if row["skipped"] is not None}
    assert skipped == {("block", "bfloat16"), ("tree_size", "bfloat16")}
    for key, row in rows.items():
        assert row.keys() == rows["block", "float32"].keys()
        assert (row["median_us"] is None) == (row["calls"] is None) == (key in skipped)
        if key in skipped:
            assert row["skipped"] == (
                "bfloat16 is emulated: the processor has none of amx_bf16, avx512_bf16, bf16"
            )
            assert row["speedup_vs_block"] is row["warm_output_us"] is None
    lines = capsys.readouterr().err.splitlines()
    measured = [" ".join(key) for key in rows if key not in skipped]
    assert [line for line in lines if line.startswith("1x3, random inputs, 1 thread, 1,024 tokens: ")] == [
        f"1x3, random inputs, 1 thread, 1,024 tokens: {name}{' eager' * ('reference' not in name)}"
        for name in measured
    ]


def test_bounds_are_counts(found):
    bounds = {
        row["layer"]: (row["bound_vs_block"], row["bound_vs_tree_size"])
        for row in found["rows"]
        if row["backend"] == "reference"
    }
    assert bounds == {"1x3": (48 / 4, 15 / 4), "2x2": (48 / 6, 14 / 6)}


def test_the_summary_is_the_geometric_mean(found):
    assert [(row["layer"], row["backend"]) for row in found["summary"]] == [
        ("1x3", "reference"),
        ("2x2", "reference"),
    ]
    for one in found["summary"]:
        rows = [r for r in found["rows"] if (r["layer"], r["backend"]) == (one["layer"], "reference")]
        for name in ("vs_block", "vs_tree_size"):
            ratios = [row[f"speedup_{name}"] for row in rows]
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            assert one[f"geomean_{name}"] == pytest.approx(mean)
            assert one[f"min_{name}"] == min(ratios)
        assert one["share_of_bound"] == pytest.approx(one["geomean_vs_tree_size"] / one["bound_vs_tree_size"])
        assert one["geomean_vs_int8_dense"] is None


def test_the_machine_is_described(found):
    described = found["machine"]
    assert described["torch"] == torch.__version__
    assert described["transparent_huge_pages"] in ("always", "madvise", "never", "unknown")
    assert len(described["jitter"]) == 2
    assert found["settings"]["compile"] is False


def test_a_wrong_backend_stops_the_run(monkeypatch):
    right = contestants.deploy

    def wrong(layer, backend, dtype):
        layer = right(layer, backend=backend, dtype=dtype)
        with torch.no_grad():
            layer.fff_out_weight[0, 1] *= 1.001
        return layer

    monkeypatch.setattr(contestants, "deploy", wrong)
    with pytest.raises(WrongOutputError, match="backend reference with float32 rows"):
        bench_layer(**QUICK)


def test_large_calls_are_checked_to_their_end(monkeypatch):
    right = contestants.deploy

    def wrong(layer, backend, dtype):
        layer = right(layer, backend=backend, dtype=dtype)
        layer.register_forward_hook(lambda module, args, y: y * (torch.arange(len(y)) < 290)[:, None])
        return layer

    monkeypatch.setattr(check, "MOST_TOKENS", 64)
    settings = {**QUICK, "sizes": (300,)}
    bench_layer(**settings)
    monkeypatch.setattr(contestants, "deploy", wrong)
    with pytest.raises(WrongOutputError, match="backend reference with float32 rows"):
        bench_layer(**settings)


def test_threads_are_as_before(found):
    threads = torch.get_num_threads()
    bench_layer(**{**QUICK, "threads": (2,), "sizes": (1,), "forests": ((1, 1),)})
    assert torch.get_num_threads() == threads


def test_large_outputs_are_timed_warm_too():
    settings = {**QUICK, "shape": (64, 64), "sizes": (4, 1024), "forests": ((1, 1),)}
    for row in bench_layer(**settings)["rows"]:
        large = row["tokens"] == 1024  # 256 KiB, and 1 KiB
        assert (row["warm_output_us"] is not None) == (large and row["skipped"] is None)


def test_compiled_blocks_take_part_and_the_better_counts():
    settings = {**QUICK, "compile": True, "sizes": (3,), "forests": ((1, 2),)}
    found = bench_layer(**settings)
    times = {(r["backend"], r["variant"]): r["median_us"] for r in found["rows"] if r["dtype"] == "float32"}
    if ("block", "compiled") not in times:
        assert found["problems"]  # no compiler here
        return
    for size in ("block", "tree_size"):
        better = min(("eager", "compiled"), key=lambda variant: times[size, variant])
        row = next(row for row in found["rows"] if row["backend"] == "reference")
        assert row[f"{size}_baseline"] == better
        assert row[f"speedup_vs_{size}"] == pytest.approx(times[size, better] / row["median_us"])


def test_a_failing_compiler_is_reported(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", fail)
    found = bench_layer(**{**QUICK, "compile": True})
    assert (
        found["problems"][0] == "torch.compile failed (block, 1 tokens, 1 threads): RuntimeError: no compiler"
    )
    assert {row["variant"] for row in found["rows"]} == {None, "eager"}


def test_training_is_compared_with_the_masked_form():
    found = bench_layer(**{**QUICK, "train": True, "sizes": (9,), "forests": ((2, 3),)})
    rows = {row["backend"]: row for row in found["rows"]}
    assert set(rows) - {"cpu", "reference"} == {"masked_dense", "block", "tree_size"}
    layer = next(row for name, row in rows.items() if name in ("cpu", "reference"))
    assert {row["mode"] for row in rows.values()} == {"train"}
    assert layer["speedup_vs_masked_dense"] == pytest.approx(
        rows["masked_dense"]["median_us"] / layer["median_us"]
    )
    assert 0 < layer["max_error"] < 1e-5
    assert found["summary"][0]["geomean_vs_masked_dense"] == pytest.approx(layer["speedup_vs_masked_dense"])


def test_the_sweep_over_depths_and_its_picture(tmp_path):
    before = torch.get_num_threads()
    rows = sweep(LayerBench(**{**QUICK, "plot_sizes": (1, 6), "threads": (before + 1,)}), depths=(1, 2, 4))
    assert torch.get_num_threads() == before
    assert {row["threads"] for row in rows} == {before + 1}
    assert [(row["depth"], row["tokens"], row["nodes"]) for row in rows] == [
        (depth, tokens, 2 ** (depth + 1) - 1) for depth in (1, 2, 4) for tokens in (1, 6)
    ]
    assert all(row["us_per_token"] == row["median_us"] / row["tokens"] for row in rows)
    draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


@pytest.mark.parametrize("tokens", [1, 7, 5000])
def test_inputs_are_distinct_and_never_zero(tokens):
    batches = random_workload(FFFSpec(4, 4, 1), 8, seed=3).batches(tokens, seed=3)
    every = torch.cat(batches)
    assert len(every) >= DISTINCT_TOKENS
    assert len(batches) >= 3
    assert all(len(x) == tokens for x in batches)
    assert len(every.unique(dim=0)) == len(every)
    assert every.abs().sum(1).min() > 0


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"sizes": ()}, "`sizes` is empty"),
    "zero tokens": ({"sizes": (8, 0)}, "`sizes` is 8,0; expected numbers from 1"),
    "threads": ({"threads": (0,)}, "`threads` is 0"),
    "dtype": ({"dtypes": ("float8",)}, "`dtypes` is 'float8'; expected some of float32,bfloat16,int8"),
    "backend": ({"backends": ("tpu",)}, "`backends` holds 'tpu'; expected some of"),
    "depth": ({"forests": ((1, 40),)}, "depth is 40"),
    "shape": ({"shape": (0, 4)}, "`shape` holds 0"),
    "seconds": ({"seconds": float("nan")}, "`seconds` is nan"),
    "repeats": ({"repeats": 0}, "`repeats` 0"),
    "limit": ({"limit": 0.0}, r"`limit` 0\.0"),
    "train and model": ({"train": True, "model": "x"}, "leave out the model"),
    "block without model": ({"blocks": ("layer.0",)}, "give the model too"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused(case):
    change, message = BAD[case]
    with pytest.raises(FFFError, match=message):
        LayerBench(**{**QUICK, **change})


def test_plots_are_checked_before_anything_runs(tmp_path, monkeypatch):
    with pytest.raises(FFFError, match=r"expected a name that ends in \.png"):
        LayerBench(plot=tmp_path / "plot.txt")
    with pytest.raises(FFFError, match="its folder does not exist"):
        LayerBench(plot=tmp_path / "none/plot.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(FFFError, match=r"pip install 'fffconvert\[plots\]'"):
        LayerBench(plot=tmp_path / "plot.png")


def test_what_makes_figures_doubtful_is_said():
    assert machine.warnings(0.1, [1.01, 1.05], (1,)) == []
    many = machine.usable_cores() + 1
    load, jitter, threads = machine.warnings(1.7, [1.0, 1.5], (1, many))
    assert "load was 1.7" in load
    assert "1.50 times the fastest" in jitter
    assert f"{many} threads were measured on {many - 1} usable cores" in threads
