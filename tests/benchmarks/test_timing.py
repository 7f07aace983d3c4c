from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fffconvert.benchmarks import timing
from fffconvert.benchmarks.timing import Contestant, Timing, kept_memory, measure


@given(st.lists(st.integers(1, 10**10), min_size=2, max_size=60))
def test_statistics_are_those_of_the_standard_library(nanoseconds):
    found = Timing.of(nanoseconds, page_faults=3)
    fifths = statistics.quantiles(nanoseconds, n=5, method="inclusive")
    assert found.median_us == pytest.approx(statistics.median(nanoseconds) / 1e3)
    assert (found.p20_us, found.p80_us) == pytest.approx((fifths[0] / 1e3, fifths[3] / 1e3))
    assert (found.calls, found.page_faults) == (len(nanoseconds), 3 / len(nanoseconds))


class Clock:
    """A clock that moves on only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ns = 0
        monkeypatch.setattr(timing, "perf_counter_ns", lambda: self.ns)

    def wait(self, microseconds: int) -> None:
        self.ns += 1000 * microseconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_contestants_take_turns_in_an_order_that_moves_on(monkeypatch, clock):
    monkeypatch.setattr(timing, "WARM_UP_CALLS", 1)
    called: list[str] = []

    def contestant(name: str) -> Contestant:
        def call(_: int) -> None:
            called.append(name)
            clock.wait({"a": 1, "b": 20, "c": 3}[name])

        return Contestant(call, [0])

    times = measure({name: contestant(name) for name in "abc"}, seconds=1e-9, repeats=3)
    assert called[-9:] == list("abcbcacab")
    assert all(found.calls == 3 for found in times.values())
    assert {name: found.median_us for name, found in times.items()} == {"a": 1, "b": 20, "c": 3}


def test_inputs_change_from_call_to_call_and_are_prepared_untimed(clock):
    seen: list[int] = []
    prepared: list[int] = []

    def prepare(x: int) -> None:
        prepared.append(x)
        clock.wait(5000)

    def call(x: int) -> None:
        seen.append(x)
        clock.wait(x)

    found = measure({"one": Contestant(call, [1, 2, 3], prepare)}, seconds=1e-9, repeats=7)["one"]
    assert seen == prepared == [1 + n % 3 for n in range(len(seen))]
    assert found.median_us == 2


@pytest.mark.parametrize(("seconds", "calls"), [(0.05, 50), (0.001, 7), (1e-9, 7)])
def test_the_number_of_calls_fills_the_time(clock, seconds, calls):
    slow = Contestant(lambda x: clock.wait(1000), [0])
    assert measure({"slow": slow}, seconds=seconds, repeats=7)["slow"].calls == calls


@pytest.mark.parametrize(
    ("limit", "timed", "called"),
    [(10, 7, 8), (4.5, 3, 4), (1.5, 1, 2), (0.9, 1, 1)],  # seconds; a call takes one
)
def test_a_slow_contestant_makes_fewer_calls(clock, limit, timed, called):
    begun: list[str] = []
    calls: list[int] = []

    def slow(_: int) -> None:
        calls.append(len(begun))
        clock.wait(1_000_000)

    both = {"slow": Contestant(slow, [0]), "quick": Contestant(lambda x: clock.wait(1), [0])}
    times = measure(both, seconds=9.5e-6, repeats=7, limit=limit, begin=begun.append)
    assert (times["slow"].calls, len(calls), times["slow"].median_us) == (timed, called, 1e6)
    assert (times["quick"].calls, times["quick"].median_us) == (10, 1)
    assert begun == ["slow", "quick"]
    assert calls[0] == 1  # told before its first call


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
        for _ in range(12):  # the heap grows to what is needed; glibc first sets seven small pieces aside
            fresh(0)
        within = measure(one, seconds=1e-9, repeats=3)["fresh"].page_faults
    after = measure(one, seconds=1e-9, repeats=3)["fresh"].page_faults
    assert min(before, after) > 20  # 12,288 pages of 4 KiB, or 24 of 2 MiB
    assert within < before / 10
