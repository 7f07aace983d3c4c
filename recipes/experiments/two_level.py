"""Experiment 1: a two-level fast feedforward layer against dense blocks, on synthetic data: fit and speed.

The target bends differently in each of four regions of the input, which two levels of decisions can tell
apart. All layers are trained alike. Run:
python recipes/experiments/two_level.py [--plot two_level.svg] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from tqdm import tqdm

import fffconvert as fff

WIDTH, LEAF, DEPTH = 32, 16, 1
STEPS, BATCH, LEARNING_RATE = 2000, 256, 3e-3
TEST_POINTS = 8192


class Target(nn.Module):
    """Four small networks, of which two hyperplanes choose one for each point."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.planes = torch.randn(WIDTH, 2, generator=generator)
        self.up = torch.randn(4, WIDTH, 8, generator=generator) / WIDTH**0.5
        self.down = torch.randn(4, 8, WIDTH, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the target.

        Args:
            x: [points, WIDTH]

        Returns:
            [points, WIDTH]
        """
        sides = (x @ self.planes > 0).long()
        region = 2 * sides[:, 0] + sides[:, 1]
        hidden = torch.einsum("nd,rdh->nrh", x, self.up).sin()
        each = torch.einsum("nrh,rhd->nrd", hidden, self.down)
        return each[torch.arange(len(x)), region]


def dense(width: int) -> nn.Module:
    """An ordinary feedforward block."""
    return nn.Sequential(nn.Linear(WIDTH, width), nn.GELU(), nn.Linear(width, WIDTH))


def train(layer: nn.Module, target: Target, seed: int) -> float:
    """Train a layer and measure it.

    Returns:
        Share of the target's variance that it explains on new points.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(layer.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        x = torch.randn(BATCH, WIDTH, generator=generator)
        loss = nn.functional.mse_loss(layer(x), target(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x = torch.randn(TEST_POINTS, WIDTH, generator=generator)
    with torch.no_grad():
        y = target(x)
        return 1 - float((layer(x) - y).square().mean() / y.var(0).mean())


def run(seeds: int) -> list[dict[str, Any]]:
    """Train and time every layer.

    Returns:
        For each layer its name, active width, R² of each seed, and microseconds for a call of 1 and of 1,024
        tokens.
    """
    spec = fff.FFFSpec(WIDTH, WIDTH, DEPTH, leaf_width=LEAF, branch_outputs=True)
    stored = spec.leaves * LEAF + spec.nodes
    makers: dict[str, tuple[int, Callable[[], nn.Module]]] = {
        f"FFF, two levels, leaves of {LEAF}": (spec.active_width, lambda: fff.FFFLayer(spec)),
        "dense, as wide as a path": (spec.active_width, lambda: dense(spec.active_width)),
        "dense, as wide as all of the tree": (stored, lambda: dense(stored)),
    }
    rows, layers = [], {}
    for name, (width, make) in makers.items():
        scores = []
        for seed in tqdm(range(seeds), desc=name, disable=None):
            torch.manual_seed(seed)
            layers[name] = make()
            scores.append(train(layers[name], Target(seed), seed))
        rows.append({"layer": name, "active_width": width, "r2": scores})
    with torch.no_grad():
        for tokens in (1, 1024):
            x = torch.randn(tokens, WIDTH)
            for row in rows:
                timer = Timer("layer(x)", globals={"layer": layers[row["layer"]], "x": x})
                row[f"microseconds_{tokens}"] = round(1e6 * timer.blocked_autorange().median, 1)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw R² of each layer, a dot a seed."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(6, 2.2), layout="constrained").add_subplot(xlabel="R² on new points")
    for index, row in enumerate(rows):
        axes.plot(row["r2"], [index] * len(row["r2"]), "o", color="#0072b2" if index == 0 else "#808182")
    axes.set_yticks(range(len(rows)), [row["layer"] for row in rows])
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.figure.savefig(path)


def main() -> None:
    """Run the experiment and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = run(arguments.seeds)
    if arguments.plot:
        plot(rows, arguments.plot)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'layer':<34} {'width':>5}  {'R² of each seed':<18} {'µs, 1 token':>12} {'1,024 tokens':>13}")
    for row in rows:
        scores = " ".join(f"{score:.3f}" for score in row["r2"])
        times = f"{row['microseconds_1']:>12} {row['microseconds_1024']:>13}"
        print(f"{row['layer']:<34} {row['active_width']:>5}  {scores:<18} {times}")


if __name__ == "__main__":
    main()
