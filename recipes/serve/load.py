"""Call the service from several clients at once, check every answer, and watch its memory."""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

WORDS = "a the cat dog runs sleeps under over old new quick river market opens closed early late".split()
NEAREST = 0.99
"""Cosine of two embeddings of the same sentence: int8 rounds by the batch that it comes in."""
MOST_GROWTH = 1.05
"""Memory at the end over that after the warm-up."""
SENTENCES = 64
WARM_UP = 0.25
"""Share of the time after which memory is measured first: threads and buffers are there by then."""


@dataclass
class Report:
    """What happened.

    Attributes:
        latencies: Seconds of each request.
        failures: What went wrong, in words.
        memory_mb: The service's memory after the warm-up and at the end.
        seconds: How long it took.
    """

    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def grown(self) -> bool:
        """Whether memory grew."""
        return self.memory_mb[1] > MOST_GROWTH * self.memory_mb[0]

    def lines(self) -> list[str]:
        """The report in words."""
        p50, p95 = np.percentile(self.latencies, [50, 95]) * 1e3
        return [
            f"{len(self.latencies):,} requests in {self.seconds:.0f} s: "
            f"{len(self.latencies) / self.seconds:.1f} a second, median {p50:.1f} ms, 95 % {p95:.1f} ms",
            f"memory {self.memory_mb[0]:.0f} MB after the warm-up, {self.memory_mb[1]:.0f} MB at the end",
            f"{len(self.failures)} failures{': ' + self.failures[0] if self.failures else ''}",
        ]


def load(post: Callable[[str, Any], Any], get: Callable[[str], Any], seconds: float, clients: int) -> Report:
    """Send requests for a while.

    Args:
        post: Sends a JSON document to a path and gives the answer's document.
        get: Gets the document at a path.
        seconds: How long.
        clients: How many threads send at once.
    """
    generator = random.Random(0)
    sentences = [
        " ".join(generator.choices(WORDS, k=generator.randint(3, 40))).capitalize() for _ in range(SENTENCES)
    ]
    expected = np.array([post("/embed", {"sentences": [text]})["embeddings"][0] for text in sentences])
    report, lock = Report(), threading.Lock()
    started = time.monotonic()

    def client(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() - started < seconds:
            chosen = draw.sample(range(SENTENCES), draw.randint(1, 8))
            sent = time.monotonic()
            try:
                answer = post("/embed", {"sentences": [sentences[index] for index in chosen]})
                trouble = _difference(np.array(answer["embeddings"]), expected[chosen])
            except Exception as error:  # whatever it is, it is what we look for
                trouble = f"{type(error).__name__}: {error}"
            with lock:
                report.latencies.append(time.monotonic() - sent)
                if trouble:
                    report.failures.append(trouble)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(seconds * WARM_UP)
    report.memory_mb.append(get("/health")["memory_mb"])
    for thread in threads:
        thread.join()
    report.memory_mb.append(get("/health")["memory_mb"])
    report.seconds = time.monotonic() - started
    return report


def _difference(found: np.ndarray, expected: np.ndarray) -> str:
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    sizes = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((found * expected).sum(1) / sizes).min())
    return "" if cosine >= NEAREST else f"an embedding differs from that sent alone: cosine {cosine:.4f}"


def main() -> int:
    """Read the arguments, send, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    with httpx.Client(base_url=arguments.url, timeout=60) as http:
        report = load(
            lambda path, document: http.post(path, json=document).raise_for_status().json(),
            lambda path: http.get(path).raise_for_status().json(),
            arguments.seconds,
            arguments.clients,
        )
    print("\n".join(report.lines()))
    return int(bool(report.failures) or report.grown)


if __name__ == "__main__":
    sys.exit(main())
