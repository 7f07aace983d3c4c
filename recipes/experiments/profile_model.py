"""Experiment 3: where the time of a converted model goes, and what memory it takes, beside the original.

Each model runs in a process of its own, so that its memory is its own. Module times are measured by hooks: a
module's own time, without that of the modules inside it. Run:
python recipes/experiments/profile_model.py DIR [--batch 8 --length 128] [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import yaml
from torch import nn

import fffconvert as fff
from fffconvert.location import locate

CALLS, WARM_UP = 15, 3
FEEDFORWARD, ATTENTION, NORM, REST = "feedforward", "attention", "norms", "rest"


def profile(name: str, batch: int, length: int) -> dict[str, Any]:
    """Run one model on random tokens.

    Args:
        name: Hub id, folder or `pkg:DIST[/PATH]`.
        batch: Sequences.
        length: Tokens of each.

    Returns:
        `parameters`, `weights_mb`, `peak_mb` (of the process, beyond what Python and torch take),
        `milliseconds` of a call, and `share` of each kind of module.
    """
    before = _peak_mb()
    loaded = fff.load(name)
    model = loaded.model.eval()
    kinds = _kinds(model)
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.vocab_size)
    inputs = [torch.randint(0, vocabulary, (batch, length), generator=generator) for _ in range(4)]
    with torch.inference_mode():
        for _ in range(WARM_UP):
            model(inputs[0])
        times = []
        for call in range(CALLS):
            started = perf_counter()
            model(inputs[call % len(inputs)])
            times.append(perf_counter() - started)
        peak = _peak_mb()
        own = _own_times(model, inputs)
    by_kind: Counter[str] = Counter()
    for module, seconds in own.items():
        by_kind[kinds.get(module, REST)] += seconds
    total = sum(by_kind.values())
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_mb": round(weights / 1e6, 1),
        "peak_mb": round(peak - before, 1),
        "milliseconds": round(1000 * median(times), 2),
        "share": {kind: round(by_kind[kind] / total, 3) for kind in (FEEDFORWARD, ATTENTION, NORM, REST)},
    }


def _kinds(model: nn.Module) -> dict[str, str]:
    """What the modules are: part of a feedforward block, of attention, or a norm."""
    blocks = {name for name, module in model.named_modules() if isinstance(module, fff.FFFLayer)}
    for site in locate(model) if not blocks else ():
        for projection in (*site.up, site.down):
            blocks |= {name.rpartition(".")[0] for name in projection.parameters}
    # The activation is called beside the projections, mostly as a module of its own.
    beside = {name.rpartition(".")[0] for name in blocks}
    kinds = {}
    for name, module in model.named_modules():
        if name in blocks or (name.rpartition(".")[0] in beside and "act" in name.rpartition(".")[2]):
            kinds[name] = FEEDFORWARD
        elif "norm" in type(module).__name__.lower():
            kinds[name] = NORM
        elif "attention" in name.lower() or "attn" in name.lower():
            kinds[name] = ATTENTION
    return kinds


def _own_times(model: nn.Module, inputs: list[torch.Tensor]) -> dict[str, float]:
    """Seconds of each module without those inside it, the median over calls."""
    stack: list[list[Any]] = []
    seconds: dict[str, list[float]] = defaultdict(list)

    def enter(name: str) -> Any:
        def hook(*_: Any) -> None:
            stack.append([name, perf_counter(), 0.0])

        return hook

    def leave(*_: Any) -> None:
        name, started, inside = stack.pop()
        taken = perf_counter() - started
        seconds[name].append(taken - inside)
        if stack:
            stack[-1][2] += taken

    hooks = []
    for name, module in model.named_modules():
        hooks += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    for call in range(CALLS):
        model(inputs[call % len(inputs)])
    for hook in hooks:
        hook.remove()
    return {name: median(found) for name, found in seconds.items()}


def _peak_mb() -> float:
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def _in_own_process(name: str, batch: int, length: int) -> dict[str, Any]:
    command = [sys.executable, __file__, name, "--one", "--batch", str(batch), "--length", str(length)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Profile the original and the converted model, and print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="what fffconvert convert wrote")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(profile(arguments.folder, arguments.batch, arguments.length)))
        return
    recipe = yaml.safe_load(Path(arguments.folder, "fffconvert.yaml").read_text(encoding="utf-8"))
    original = recipe.get("conversion", recipe)["model"]
    rows = [_in_own_process(name, arguments.batch, arguments.length) for name in (original, arguments.folder)]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    kinds = list(rows[0]["share"])
    head = "".join(f"{kind:>13}" for kind in kinds)
    print(f"{'model':<28} {'parameters':>12} {'weights':>10} {'peak':>10} {'a call':>11}{head}")
    for row in rows:
        shares = "".join(f"{row['share'][kind]:>13.1%}" for kind in kinds)
        sizes = f"{row['weights_mb']:>7} MB {row['peak_mb']:>7} MB {row['milliseconds']:>8} ms"
        print(f"{row['model']:<28} {row['parameters']:>12,} {sizes}{shares}")


if __name__ == "__main__":
    main()
