"""Documents as the commands write them, of a made-up conversion."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

from fffconvert.hub.card import model_card
from fffconvert.hub.metrics import Metrics
from fffconvert.records import read

DEPTH = 5


def metrics(*, training: bool = False, control: str | None = None, layers: int = 6) -> dict[str, Any]:
    blocks = [
        {
            "name": f"encoder.layer.{index}.intermediate.dense",
            "trees": 1,
            "depth": DEPTH,
            "trunk": 16 if index == 2 else 0,
            "leaf_width": 106,
            "active_width": 112,
            "active_fraction": 0.073,
            "r2_heldout": 0.97 - 0.01 * index,
            "token_r2_heldout": 0.72 + 0.02 * index,
            "routing_entropy": 0.93,
            "dead_node_share": 0.01 * index,
            "path_balance": 2.1,
            "margins": [0.1, 0.8, 2.4],
            "parameters": 2_682_000,
            "parameters_before": 1_181_568,
            "macs_share": 0.11,
        }
        for index in range(layers)
    ]
    found: dict[str, Any] = {"seconds": 61.2, "blocks": blocks}
    if training:
        found["training"] = {"tokens": 400_000, "steps": 200, "seconds": 300.0, "tokens_per_second": 1333.0}
    if control:
        found["control"] = control
    return found


def recipe() -> dict[str, Any]:
    return {
        "model": "somebody/encoder",
        "depth": DEPTH,
        "leaf_width": 106,
        "calibration": [],
        "tokens": 80_000,
    }


def task(value: float, **other: Any) -> dict[str, Any]:
    return {
        "metric": "spearman",
        "value": value,
        "ci95": [value - 0.02, value + 0.02],
        "n": 1379,
        "teacher": 0.82,
        "ablated": 0.74,
        "dense": 0.75,
        "random_routing": 0.37,
        "retained": value / 0.82,
        "recovered": (value - 0.74) / (0.82 - 0.74),
        "limit": None,
        "higher_is_better": True,
        "verdicts": {"dense": "better", "ablated": "better", "random_routing": "better"},
        "ci95_of": {"teacher": [0.80, 0.84], "dense": None},
        "retained_ci95": [(value - 0.01) / 0.82, (value + 0.01) / 0.82],
        "seconds": 12.0,
    } | other


def evaluation() -> dict[str, Any]:
    shifts = [
        ("wiki", "domain"),
        ("tweets", "domain"),
        ("german", "language"),
        ("typos", "typos"),
        ("upper", "case"),
    ]
    layers = []
    for index in range(6):
        weights = [math.exp(-(0.02 + 0.02 * index) * leaf) for leaf in range(2 ** (DEPTH + 1))]
        layers.append(
            {
                "name": f"encoder.layer.{index}.intermediate.dense",
                "entropy": 0.95 - 0.05 * index,
                "dead_share": 0.01 * index,
                "levels": [
                    {
                        "level": n,
                        "nodes": 2**n,
                        "visited": 2**n - n * index // 4,
                        "entropy": 1 - 0.02 * n * index,
                    }
                    for n in range(DEPTH + 1)
                ],
                "leaf_share": [weight / sum(weights) for weight in weights],
            }
        )
    return {
        "model": "out",
        "teacher": "somebody/encoder",
        "tasks": {
            "sts-b": task(0.79),
            "rte": task(
                0.61,
                metric="accuracy",
                teacher=0.66,
                dense=0.62,
                ablated=0.65,
                verdicts={"dense": "undecided", "ablated": "worse"},
                n=277,
                recovered_unclear=True,
            ),
            "cola": task(
                0.30,
                metric="matthews",
                teacher=0.45,
                dense=0.36,
                ablated=0.05,
                verdicts={"dense": "worse", "ablated": "better"},
                n=100,
                limit=100,
            ),
            "mlm": task(
                3.1,
                metric="loss",
                higher_is_better=False,
                ci95=[3.0, 3.2],
                teacher=2.2,
                dense=3.6,
                ablated=4.4,
                random_routing=None,
                verdicts={"dense": "better"},
            ),
        },
        "robustness": {
            "rows": [
                {
                    "name": name,
                    "kind": kind,
                    "metric": "spearman",
                    "value": 0.8 - 0.05 * index,
                    "teacher": 0.82,
                    "retained": (0.8 - 0.05 * index) / 0.82,
                    "routing_overlap": 0.9 - 0.1 * index,
                    "neurons_used": 0.95 - 0.05 * index,
                    "n": 500,
                }
                for index, (name, kind) in enumerate(shifts)
            ]
            + [{"name": "statutes", "kind": "domain", "metric": "embedding_cosine", "value": 0.7, "n": 300}]
        },
        "ablation": {
            "rows": [
                {"name": name, "metric": "spearman", "value": value, "n": 1379}
                for name, value in (
                    ("hard", 0.79),
                    ("all-nodes", 0.4),
                    ("random", 0.37),
                    ("shuffled", -0.05),
                    ("depth-2", 0.6),
                )
            ]
        },
        "routing": {
            "layers": layers,
            "leaves": [
                {
                    "layer": layers[0]["name"],
                    "leaf": 3,
                    "tokens": [["<b>the</b>", 120], ["a|b", 80], ["`of`", 7]],
                },
                {"layer": layers[0]["name"], "leaf": 9, "tokens": [["dog", 12], ["cat", 9]]},
            ],
            "agreement": {"random_routing": {"layers": [], "same_leaf": 0.12, "same_decisions": 0.31}},
        },
        "environment": {"torch": "2.13.0", "cpu": {"model": "A processor", "features": ["avx2", "avx512f"]}},
    }


def bench() -> dict[str, Any]:
    rows = []
    for batch, length in ((1, 128), (8, 128), (32, 128)):
        for runtime, speedup in (
            ("torch", 1.0),
            ("torch.compile", 1.1),
            ("ablated", 2.6),
            ("fffconvert", 1.7),
            ("fffconvert-int8", 1.9),
        ):
            median = 20.0 * batch / speedup
            rows.append(
                {
                    "runtime": runtime,
                    "batch": batch,
                    "length": length,
                    "median_ms": median,
                    "p20_ms": 0.97 * median,
                    "p80_ms": 1.05 * median,
                    "speedup_vs_torch": speedup,
                    "amdahl_cap": 2.6,
                    "max_error": 3e-6,
                }
            )
    return {
        "rows": rows,
        "profile": [
            {
                "runtime": name,
                "batch": 8,
                "length": 128,
                "ms": {"feedforward": ms, "attention": 7.0, "rest": 1.5},
            }
            for name, ms in (("torch", 12.0), ("fffconvert", 1.1))
        ],
        "warnings": ["the load was 3.1 at the start: other work was running, or had just ended"],
    }


def sweep() -> dict[str, Any]:
    points = [
        (1, 4, 0, 0.004, 0.75),
        (1, 8, 0, 0.006, 0.76),
        (1, 11, 0, 0.008, 0.755),
        (4, 4, 0, 0.013, 0.77),
        (1, 4, 107, 0.07, 0.80),
        (4, 8, 0, 0.024, 0.765),
    ]
    return {
        "model": "somebody/encoder",
        "rows": [
            {
                "trees": trees,
                "depth": depth,
                "leaf_width": leaf_width,
                "trunk": 0,
                "active_fraction": fraction,
                "parameters_ratio": 2.2,
                "tasks": {
                    "sts-b": {
                        "metric": "spearman",
                        "value": value,
                        "ci95": [value - 0.01, value + 0.01],
                        "retained": value / 0.82,
                    }
                },
            }
            for trees, depth, leaf_width, fraction, value in points
        ],
        "pareto": [0, 1, 3, 4],
    }


def training() -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "tokens": 2000 * step,
            "loss": 3 * math.exp(-step / 60) + 0.7,
            "losses": {"hidden": math.exp(-step / 60), "mlm": 2 * math.exp(-step / 60) + 0.7},
            "tokens_per_second": 1333.0,
            "learning_rate": 1e-4,
            **({"eval_loss": 3 * math.exp(-step / 60) + 0.8} if step % 50 == 0 else {}),
        }
        for step in range(10, 201, 10)
    ]


def write(folder: Path, **documents: Any) -> Path:
    """Write documents by name: metrics, recipe, eval, bench, sweep, training."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in documents.items():
        if name == "recipe":
            (folder / "fffconvert.yaml").write_text(yaml.safe_dump(values))
        elif name == "training":
            (folder / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in values))
        else:
            (folder / f"{name}.json").write_text(json.dumps(values))
    if {"metrics", "recipe"} <= set(documents):
        metrics_ = read(Metrics, documents["metrics"], author="program")
        (folder / "README.md").write_text(model_card(documents["recipe"], metrics_))
    return folder


def everything(folder: Path, **changed: Any) -> Path:
    """A folder in which nothing is missing."""
    documents = {
        "metrics": metrics(training=True),
        "recipe": recipe(),
        "eval": evaluation(),
        "bench": bench(),
        "sweep": sweep(),
        "training": training(),
    }
    return write(folder, **(documents | changed))
