"""Check every config type of the installed transformers on a tiny random model.

    python tests/sweep.py [--only TYPE ...] [--json FILE] [--timeout SECONDS]

Every model is built, run and checked in a worker process of bounded memory, one at a time; a crash or a
hang costs that model only. The table of outcomes goes to stdout, with the list of the types not run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TRANSFORMERS_VERBOSITY="error")

from tqdm import tqdm

MEMORY = 8 * 2**30


@dataclass(frozen=True)
class Row:
    """One config type's outcome: "not built", "not run" or the status of `zoo.check.Outcome`."""

    model_type: str
    status: str
    detail: str = ""
    seconds: float = 0.0
    parameters: int = 0
    model: str = ""


def examine(model_type: str) -> Row:
    """Build, run and check one type."""
    import torch
    from zoo.check import check
    from zoo.shrink import tiny_model

    from fffconvert.location.inputs import example_inputs

    start, status, model = time.perf_counter(), "not built", None
    try:
        model = tiny_model(model_type)
        status = "not run"
        inputs = example_inputs(model)
        with torch.no_grad():
            model(**inputs)
        status = "wrong"
        outcome = check(model, inputs)
        status, detail = outcome.status, outcome.detail
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split())[:300]
        detail = f"{type(error).__name__}: {message} ({Path(frame.filename).name}:{frame.lineno})"
    parameters = sum(p.numel() for p in model.parameters()) if model is not None else 0
    return Row(model_type, status, detail, time.perf_counter() - start, parameters, type(model).__name__)


def work(connection: Connection) -> None:
    """Examine the types that come in until None does."""
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import torch

    torch.set_num_threads(1)
    for model_type in iter(connection.recv, None):
        connection.send(examine(model_type))


class Worker:
    """A process that examines types one by one, started anew when one of them ends it."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.process: multiprocessing.process.BaseProcess | None = None

    def __call__(self, model_type: str) -> Row:
        if self.process is None:
            self.start()
        start = time.perf_counter()
        try:
            self.connection.send(model_type)
            if self.connection.poll(self.timeout):
                return self.connection.recv()
            reason = f"no answer in {self.timeout:.0f} s"
        except (EOFError, OSError):
            reason = "the process died"
        self.stop()
        return Row(model_type, "not run", reason, time.perf_counter() - start)

    def start(self) -> None:
        """Start a process."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def main() -> int:
    """Run the sweep; 1 if any model came out wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="these config types instead of all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument(
        "--timeout", type=float, default=60, metavar="SECONDS", help="for one type (default: 60)"
    )
    arguments = parser.parse_args()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    worker, rows = Worker(arguments.timeout), []
    for model_type in (bar := tqdm(arguments.only or list(CONFIG_MAPPING_NAMES), unit="type")):
        bar.set_postfix_str(model_type)
        rows.append(worker(model_type))
    worker.stop()
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    sys.stdout.write(report(rows))
    return int(any(row.status == "wrong" for row in rows))


def report(rows: list[Row]) -> str:
    """How many types came out how, and the types not replaced exactly with the reason."""
    counts = Counter(row.status for row in rows)
    lines = [f"{len(rows)} config types in {sum(row.seconds for row in rows):.0f} s"]
    lines += [f"{count:6}  {status}" for status, count in counts.most_common()]
    for row in sorted(rows, key=lambda row: (row.status, row.model_type)):
        if row.status in ("not built", "not run", "refused", "wrong"):
            lines.append(f"{row.status:10} {row.model_type:32} {row.detail}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
