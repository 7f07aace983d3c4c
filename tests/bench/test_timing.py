from __future__ import annotations

import statistics
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fffconvert.bench import timing
from fffconvert.bench.timing import Contestant, Timing, kept_memory, measure


@given(st.lists(st.integers(1, 10**10), min_size=2, max_size=60))
def test_statistics_are_those_of_the_standard_library(nanoseconds):
    found = Timing.of(nanoseconds, page_faults=3)
    fifths = statistics.quantiles(nanoseconds, n=5, method="inclusive")
    assert found.median_us == pytest.approx(statistics.median(nanoseconds) / 1e3)
    assert (found.p20_us, found.p80_us) == pytest.approx((fifths[0] / 1e3, fifths[3] / 1e3))
    assert (found.calls, found.page_faults) == (len(nanoseconds), 3 / len(nanoseconds))


def test_contestants_take_turns_in_an_order_that_moves_on(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP_CALLS", 1)
    called: list[str] = []

    def contestant(name: str) -> Contestant:
        def call(_: int) -> None:
            called.append(name)
            time.sleep(0.002)

        return Contestant(call, [0])

    times = measure({name: contestant(name) for name in "abc"}, seconds=1e-9, repeats=3)
    assert called[-9:] == list("abcbcacab")
    assert all(found.calls == 3 for found in times.values())
    assert all(found.median_us >= 2000 for found in times.values())


def test_inputs_change_from_call_to_call_and_are_prepared_untimed():
    seen: list[int] = []
    prepared: list[int] = []

    def prepare(x: int) -> None:
        prepared.append(x)
        time.sleep(0.005)

    found = measure({"one": Contestant(seen.append, [1, 2, 3], prepare)}, seconds=1e-9, repeats=7)["one"]
    assert seen == prepared == [1 + n % 3 for n in range(len(seen))]
    assert found.median_us < 2500


def test_the_number_of_calls_fills_the_time():
    fast = Contestant(lambda x: time.sleep(0.001), [0])
    assert 15 <= measure({"fast": fast}, seconds=0.05, repeats=7)["fast"].calls <= 56


def test_garbage_collection_is_as_before():
    import gc

    assert gc.isenabled()
    measure({"one": Contestant(lambda x: x, [0])}, seconds=1e-9, repeats=1)
    assert gc.isenabled()


def test_kept_memory_spares_page_faults():
    tokens, d = 16_384, 768  # 50 MB, above what malloc ever keeps of its own accord

    def fresh(_: int) -> torch.Tensor:
        return torch.empty(tokens, d).fill_(1)

    one = {"fresh": Contestant(fresh, [0])}
    before = measure(one, seconds=1e-9, repeats=3)["fresh"].page_faults
    with kept_memory() as kept:
        if not kept:
            pytest.skip("not glibc")
        for _ in range(3):  # the heap grows to what is needed
            fresh(0)
        within = measure(one, seconds=1e-9, repeats=3)["fresh"].page_faults
    after = measure(one, seconds=1e-9, repeats=3)["fresh"].page_faults
    assert min(before, after) > 20  # 12,288 pages of 4 KiB, or 24 of 2 MiB
    assert within < before / 10
