"""Times of calls: contestants take turns, so that whatever disturbs the machine disturbs all alike."""

from __future__ import annotations

import ctypes
import gc
import math
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROUNDS = 7
"""How often the contestants take turns."""
WARM_UP_CALLS = 3
MOST_CALLS = 20_000
FRESH_BYTES = 128 << 10
"""Malloc may map fresh pages for a tensor from this size on; smaller ones come from its warm heap."""
_MMAP_MAX, _TRIM_THRESHOLD, _MMAP_DEFAULT = -4, -1, 65_536  # constants of mallopt


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Attributes:
        call: Called with one of `inputs`; all of it is timed, Python included.
        inputs: What it is given, one after another and from the start again.
        prepare: Called before each call, untimed.
    """

    call: Callable[[Any], Any]
    inputs: Sequence[Any]
    prepare: Callable[[Any], None] = lambda x: None


@dataclass(frozen=True)
class Timing:
    """Times of one contestant, in microseconds.

    Attributes:
        median_us: Median time of a call.
        p20_us: 20th percentile.
        p80_us: 80th percentile.
        calls: How many calls.
        page_faults: Mean count of page faults that needed no disk, for one call.
    """

    median_us: float
    p20_us: float
    p80_us: float
    calls: int
    page_faults: float

    @classmethod
    def of(cls, nanoseconds: Sequence[int], page_faults: int) -> Timing:
        """Summarise single calls."""
        p20, median, p80 = (float(p) / 1e3 for p in np.percentile(nanoseconds, [20, 50, 80]))
        return cls(median, p20, p80, len(nanoseconds), page_faults / len(nanoseconds))


def measure(
    contestants: Mapping[str, Contestant],
    *,
    seconds: float,
    repeats: int,
    limit: float = math.inf,
    begin: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Time contestants in turns.

    Each takes some `seconds` in all, and at least `repeats` calls, or fewer where these take longer than
    `limit`: one call is timed in any case, which is the first where already that one takes so long. In every
    round each makes its share of its calls, one after the other; the order moves on by one from round to
    round. A result is freed after its call's time has been taken. Garbage is not collected meanwhile.

    Args:
        contestants: By name.
        seconds: Time for each of them.
        repeats: Least calls of each of them.
        limit: Seconds after which none begins a further call.
        begin: Told the name of each before its first call.
    """
    inputs = {name: cycle(contestant.inputs) for name, contestant in contestants.items()}
    times: dict[str, list[int]] = {name: [] for name in contestants}
    faults = dict.fromkeys(contestants, 0)
    calls: dict[str, int] = {}
    rounds = min(ROUNDS, repeats)
    for name, contestant in contestants.items():
        begin(name)
        before = _page_faults()
        first = _time(contestant, inputs[name], 1)  # it may set things up
        if first[0] / 1e9 >= limit:
            times[name], faults[name], calls[name] = first, _page_faults() - before, 0
        else:
            calls[name] = _calls(contestant, inputs[name], first[0] / 1e9, seconds, repeats, limit)
    order = list(contestants)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            start = turn % len(order)
            for name in (*order[start:], *order[:start]):
                share = calls[name] * (turn + 1) // rounds - calls[name] * turn // rounds
                before = _page_faults()
                times[name] += _time(contestants[name], inputs[name], share)
                faults[name] += _page_faults() - before
            gc.collect(1)  # what calls made; the older objects of all modules would take a fifth of a second
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(times[name], faults[name]) for name in order}


def _calls(
    contestant: Contestant, inputs: Iterator[Any], first: float, seconds: float, repeats: int, limit: float
) -> int:
    """Warm up further if the first call took less than the time, and see how many calls fill it."""
    spent = [first]
    if first < seconds:
        spent += [t / 1e9 for t in _time(contestant, inputs, WARM_UP_CALLS)]
    call = max(min(spent), 1e-9)
    wanted = min(MOST_CALLS, max(repeats, math.ceil(seconds / call)))
    return wanted if wanted * call <= limit - sum(spent) else max(1, int((limit - sum(spent)) / call))


def _time(contestant: Contestant, inputs: Iterator[Any], calls: int) -> list[int]:
    times = []
    for _ in range(calls):
        x = next(inputs)
        contestant.prepare(x)
        started = perf_counter_ns()
        result = contestant.call(x)
        times.append(perf_counter_ns() - started)
        del result
    return times


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def page_fault_us(tokens: int, d: int, *, seconds: float, repeats: int) -> float:
    """What fresh memory costs: filling a new float32 tensor [tokens, d], less filling one again."""
    warm = torch.zeros(tokens, d, dtype=torch.float32)

    def fresh(_: Tensor) -> Tensor:
        return torch.empty(tokens, d, dtype=torch.float32).fill_(1)

    pair = {"fresh": Contestant(fresh, [warm]), "warm": Contestant(lambda x: x.fill_(1), [warm])}
    times = measure(pair, seconds=seconds, repeats=repeats)
    return times["fresh"].median_us - times["warm"].median_us


@contextmanager
def kept_memory() -> Iterator[bool]:
    """Let glibc keep freed memory, so that the next tensor of a size gets pages that are mapped already.

    Yields whether that can be asked for: only of glibc. Its thresholds no longer adapt afterwards.
    """
    library = ctypes.CDLL(None)
    mallopt, trim = (getattr(library, name, None) for name in ("mallopt", "malloc_trim"))
    if mallopt is None or trim is None:
        yield False
        return
    kept = bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    try:
        yield kept
    finally:
        mallopt(_MMAP_MAX, _MMAP_DEFAULT)
        mallopt(_TRIM_THRESHOLD, FRESH_BYTES)
        trim(0)


@contextmanager
def threads_restored() -> Iterator[None]:
    """Give torch the number of threads back that it had before the body."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
