"""Machines and times: the roofline by hand, tables of rates, the machine at hand, the comparison."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import fffconvert as fff
from fffconvert.cli import app
from fffconvert.errors import FFFError
from fffconvert.estimation import Estimate, comparison, measure, roofline
from fffconvert.estimation.anatomy import Anatomy, Operation, Part, Rows
from fffconvert.estimation.conversion import ablated, converted, distinct_nodes
from fffconvert.estimation.faults import fresh_shares
from fffconvert.estimation.machines import Hardware, Rates, at, hardware, known_machines
from fffconvert.estimation.workload import Phase, Stream, Workload
from fffconvert.records import plain, read

MACHINE = Hardware(
    name="slow",
    title="a slow machine",
    kind="cpu",
    flops={"float32": 2e9},
    vector_flops=1e9,
    bandwidth=1e9,
    cache_bytes=1e6,
    cache_bandwidth=1e10,
    memory_bytes=1e9,
    call_us=10.0,
    source="made up",
)


@pytest.fixture(scope="module")
def bert() -> Estimate:
    return fff.estimate("bert-base", depth=11)


def test_a_linear_map_takes_the_longer_of_computing_and_moving():
    rows, d = Rows(1, Stream.TOKEN), 1000
    linear = Operation("linear", Part.OTHER, rows, macs=d * d, weights=d * d, elements=2.0 * d, shape=(d, d))
    anatomy = Anatomy((linear,), (), {}, rows, None)
    few = roofline.duration(anatomy, Workload(1, 1), MACHINE)
    assert few.moving == pytest.approx(4 * (d * d + 2 * d) / 1e9)
    assert (few.bound, few.calling) == ("memory", pytest.approx(1e-5))
    many = roofline.duration(anatomy, Workload(1, 100), MACHINE)
    assert many.computing == pytest.approx(2 * 100 * d * d / 2e9)
    assert many.bound == "compute"
    assert many.by_part[Part.OTHER] == pytest.approx(many.seconds)


def test_trees_read_the_rows_that_tokens_meet(bert: Estimate):
    work = Workload(1, 40)
    only = dataclasses.replace(
        bert.converted, operations=tuple(o for o in bert.converted.operations if o.trees)
    )
    moved = roofline.moved_bytes(only, work, "bfloat16")[Part.FEEDFORWARD]
    rows = distinct_nodes(bert.spec, 40) + 40  # of the trees, and of the tokens in and out
    assert moved == pytest.approx(12 * 2 * rows * 2 * 768)


def test_bytes_of_weights_are_read_once_however_many_tokens(bert: Estimate):
    one, many = (
        roofline.moved_bytes(bert.anatomy, Workload(1, length), "float32")[Part.FEEDFORWARD]
        for length in (1, 11)
    )
    activations = (many - one) / 10
    assert one - activations == pytest.approx(12 * 4 * 2 * 768 * 3072)


@pytest.mark.parametrize("name", known_machines())
def test_machines_bound_the_converted_model_by_the_deleted_one(name: str, bert: Estimate):
    machine = known_machines()[name]
    assert machine.source
    for work in (Workload(1, 1), Workload(1, 128), Workload(32, 512)):
        dense, trees, without = (
            roofline.duration(anatomy, work, machine).seconds
            for anatomy in (bert.anatomy, bert.converted, ablated(bert.anatomy))
        )
        assert without < trees < dense


def test_decoding_is_bound_by_memory_and_prefill_by_compute():
    found = [
        fff.estimate("gpt3-6.7b", phase=phase, context=2048, batch=batch, hardware="a100", dtype="bfloat16")
        for phase, batch in (("decode", 1), ("prefill", 1), ("decode", 256))
    ]
    times = [estimate.roofline() for estimate in found]
    assert [time["bound"] for time in times[:2]] == ["memory", "compute"]
    weights = 2 * found[0].to_dict()["parameters"] / 2.039e12
    assert times[0]["latency_ms"] * 1e-3 > weights
    assert times[2]["speedup"] < times[0]["speedup"]  # more tokens meet more nodes


@given(
    points=st.lists(
        st.tuples(st.floats(1, 1e6), st.floats(1, 1e12)), min_size=1, max_size=6, unique_by=lambda p: p[0]
    ),
    size=st.floats(0.1, 1e7),
)
def test_tables_stay_within_their_points(points: list[tuple[float, float]], size: float):
    table = sorted(points)
    rates = [rate for _, rate in table]
    assert min(rates) * (1 - 1e-9) <= at(table, size) <= max(rates) * (1 + 1e-9)
    for point, rate in table:
        assert at(table, point) == pytest.approx(rate)


def test_tables_of_tables_are_straight_on_logarithmic_axes():
    table = [(1.0, [(1.0, 1.0), (100.0, 100.0)]), (100.0, [(1.0, 10.0), (100.0, 1000.0)])]
    assert at(table, 10.0, 10.0) == pytest.approx(10 * math.sqrt(10))
    assert at(table, 0.01, 1e9) == 100.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bandwidth": -1}, "bandwidth of machine slow is -1.0; expected a positive number"),
        ({"flops": {"float16": 1e9}}, "lacks float32"),
        ({"wings": 2}, "unknown key .*wings; did you mean"),
        ({"call_us": None}, "call_us"),
    ],
)
def test_a_malformed_machine_is_refused(change: dict[str, object], message: str, tmp_path: Path):
    file = tmp_path / "machine.json"
    file.write_text(json.dumps({**plain(MACHINE), **change}))
    with pytest.raises(FFFError, match=message):
        hardware(str(file))


def test_a_machine_is_read_from_a_file(tmp_path: Path):
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(plain(MACHINE)))
    assert hardware(str(file)) == MACHINE
    file.write_text("[1]")
    with pytest.raises(FFFError, match="expected keys and values"):
        hardware(str(file))
    with pytest.raises(FFFError, match="cannot read"):
        hardware(str(tmp_path / "none.json"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hardware]:
    """The machine at hand, measured at few points by a clock of which each look takes a millisecond."""
    for name, value in {
        "MAPS": ((64, 64), (64, 256)),
        "ROWS": (1, 32),
        "LENGTHS": (8,),
        "WIDTHS": (64,),
        "DEPTHS": (3,),
        "TREE_ROWS": (1, 32),
        "SIZES": (1 << 12,),
        "COLD": 1 << 18,
        "FRESH": 1 << 22,
        "LEAST_SECONDS": 0.002,
        "fresh_shares": lambda: [(float(1 << 20), 0.25)],
    }.items():
        monkeypatch.setattr(measure, name, value)
    looks = itertools.count()
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: next(looks) / 1e3))
    monkeypatch.setattr(comparison, "SECONDS", 0.01)
    measure.this_machine.cache_clear()
    yield measure.this_machine()
    measure.this_machine.cache_clear()


def test_the_machine_at_hand_is_measured_and_compared(quick: Hardware):
    assert quick.rates is not None
    assert quick.peak("float32") == pytest.approx(2 * 32 * 64 * 256 / 1e-3)
    assert dict(quick.rates.attention)[8.0] == pytest.approx(2 * 2048 * 12 * 64 * 8 / 1e-3)
    assert quick.rates.elementwise["add"] == [(pytest.approx(3 * 6144), pytest.approx(3 * 6144 / 1e-3))]
    assert quick.rates.tree[0][1][0][1][1] == (32.0, pytest.approx(32 * 4 * 2 * 64 / 1e-3))
    assert 1 < quick.call_us < 1e3 / (8 * 10)  # a millisecond for eight layers of at least ten operations
    again = read(Hardware, json.loads(json.dumps(plain(quick))))
    found = fff.estimate("all-minilm-l6-v2", depth=4, hardware=quick)
    times = [roofline.duration(found.anatomy, Workload(2, 16), machine).seconds for machine in (quick, again)]
    assert times[0] == pytest.approx(times[1])
    rows = comparison.compare(found, [(1, 8), (2, 16)])
    assert [(row.model, row.batch, row.length) for row in rows] == [
        (name, *size) for name in ("original", "converted") for size in ((1, 8), (2, 16))
    ]
    for row in rows:
        anatomy = found.anatomy if row.model == "original" else found.converted
        seconds = roofline.duration(anatomy, Workload(row.batch, row.length), quick).seconds
        assert row.estimated_ms == pytest.approx(1e3 * seconds)
        assert row.p20_ms == pytest.approx(row.median_ms) == row.p80_ms == pytest.approx(1)
        assert row.error == pytest.approx(row.estimated_ms / row.median_ms - 1)


@pytest.mark.usefixtures("quick")
def test_the_command_prints_the_comparison():
    command = ["estimate", "all-minilm-l6-v2", "--depth", "4", "--compare", "1x8", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [row["model"] for row in found["rows"]] == ["original", "converted"]
    assert found["largest_error"] == max(abs(row["error"]) for row in found["rows"])
    assert read(Hardware, found["hardware"]).rates is not None


def test_only_what_is_estimated_can_be_compared(quick: Hardware):
    with pytest.raises(FFFError, match="only prefill in float32"):
        comparison.compare(fff.estimate("gpt2", phase="decode", hardware=quick), [(1, 8)])
    with pytest.raises(FFFError, match="at most"):
        comparison.compare(fff.estimate("gemma-2b", hardware=quick), [(1, 8)])


@pytest.mark.parametrize("text", ["", "1", "1x", "0x8", "axb", "1x2x3", "1x8;2x8"])
def test_malformed_sizes_are_refused(text: str):
    with pytest.raises(FFFError, match="expected BATCHxLENGTH"):
        comparison.parse_sizes(text)


def test_sizes_are_read():
    assert comparison.parse_sizes("1x32,8x128") == [(1, 32), (8, 128)]
    assert len(comparison.parse_sizes("grid")) == 9


def test_memory_of_large_results_is_new_each_time():
    shares = dict(fresh_shares())
    assert all(0 <= share <= 1 for share in shares.values())
    assert shares[float(1 << 27)] > 0.5 or sys.platform != "linux"


def test_rates_decide_where_they_were_measured():
    rows = Rows(1, Stream.TOKEN)
    block = fff.estimate("bert-base").anatomy.blocks[0]
    linear = Operation("linear", Part.OTHER, rows, macs=10**6, weights=10**6, elements=3e3, written=2e3)
    anatomy = Anatomy((linear,), (block,), {}, rows, None)
    rates = Rates(
        matmul=[(1.0, [(1.0, 1e9)])],
        attention=[(1.0, 1e9)],
        tree=[(1.0, [(1.0, [(1.0, 1e9)])])],
        elementwise={"add": [(1.0, 1e9)]},
        fresh=1e9,
        fresh_share=[(1.0, 1.0)],
    )
    machine = dataclasses.replace(MACHINE, rates=rates)
    time = roofline.duration(anatomy, Workload(1, 10), machine)
    assert time.seconds == pytest.approx(10 * 1e6 / 1e9 + 4 * 10 * 2e3 / 1e9 + 1e-5)


def test_the_layers_own_trunk_is_timed(bert: Estimate):
    specs = [dataclasses.replace(spec, trunk=64) for spec in bert.specs]
    after = converted(bert.anatomy, specs)
    extra = sum(after.macs(Workload(1, 1)).values()) - sum(bert.converted.macs(Workload(1, 1)).values())
    assert extra == 12 * 2 * 64 * 768
    assert (
        roofline.duration(after, Workload(1, 1), MACHINE).seconds
        > roofline.duration(bert.converted, Workload(1, 1), MACHINE).seconds
    )


def test_training_takes_three_passes(bert: Estimate):
    prefill, train = (
        roofline.duration(bert.anatomy, Workload(8, 128, phase), MACHINE)
        for phase in (Phase.PREFILL, Phase.TRAIN)
    )
    assert train.seconds - train.calling == pytest.approx(3 * (prefill.seconds - prefill.calling))
