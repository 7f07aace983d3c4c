"""One runtime in a process of its own: reads requests from stdin, a JSON line each, and answers likewise.

It imports no more than its runtime needs, so that memory and first calls are that runtime's own.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np

from fffconvert.benchmarks.model.inputs import Arrays, read
from fffconvert.native import register_onnxruntime

LEAST_CALLS = 2


class Worker:
    """What a process answers.

    Args:
        runtime: Name of the runtime.
        folder: Where inputs and exported files lie.
        settings: Those of the benchmark, as plain values.
    """

    def __init__(self, runtime: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        started = perf_counter()
        names = list(read(folder, tuple(settings["sizes"][0]))[0])
        self._model: Any = None
        self._call: Callable[[Arrays], np.ndarray]
        if runtime in ("ort", "ort-int8", "exported", "exported-int8"):
            self._call = _onnxruntime(folder / f"{runtime}.onnx", settings["threads"])
        elif runtime == "openvino":
            self._call = _openvino(folder / "ort.onnx", settings["threads"])
        else:
            import torch

            from fffconvert.benchmarks.model.torch_models import TorchModel

            torch.set_num_threads(settings["threads"])
            self._model = TorchModel(runtime, settings, names)
            self._call = self._model.call
        self.load_seconds = perf_counter() - started
        self._inputs: dict[tuple[int, int], Any] = {}

    def first(self, size: tuple[int, int], output: str) -> dict[str, Any]:
        """The first call with inputs of a size; writes its output to a file."""
        batches = read(self._folder, size)
        self._inputs[size] = cycle(batches)
        started = perf_counter_ns()
        y = self._call(batches[0])
        elapsed = perf_counter_ns() - started
        np.save(output, y.astype(np.float32))
        return {"first_ms": elapsed / 1e6, "peak_mb": _peak_mb()}

    def time(self, size: tuple[int, int], seconds: float) -> dict[str, Any]:
        """Single calls, for some seconds."""
        inputs = self._inputs[size]
        self._call(next(inputs))
        times: list[int] = []
        while sum(times) < seconds * 1e9 or len(times) < LEAST_CALLS:
            x = next(inputs)
            started = perf_counter_ns()
            y = self._call(x)
            times.append(perf_counter_ns() - started)
            del y
        return {"ns": times, "peak_mb": _peak_mb()}

    def run(self, inputs: str, output: str) -> dict[str, Any]:
        """One call with arrays from a file; writes its output to another."""
        with np.load(inputs) as stored:
            np.save(output, self._call({name: stored[name] for name in stored.files}).astype(np.float32))
        return {}

    def parts(self, size: tuple[int, int], calls: int) -> dict[str, Any]:
        """Milliseconds by part of the model."""
        return {"parts": self._model.parts(next(self._inputs[size]), calls)}

    def generate(self, size: tuple[int, int], tokens: int) -> dict[str, Any]:
        """Nanoseconds of each token generated."""
        return {"ns": self._model.generate(read(self._folder, size)[0], tokens), "peak_mb": _peak_mb()}

    def weights(self) -> dict[str, Any]:
        """Megabytes of weights, where they can be counted."""
        return {"weights_mb": None if self._model is None else self._model.weights_mb()}


def _onnxruntime(path: Path, threads: int) -> Callable[[Arrays], np.ndarray]:
    """A session with all optimisations, which is the default; one thread pool of the size asked for."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if path.name.startswith("exported"):
        register_onnxruntime(options)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}

    def call(arrays: Arrays) -> np.ndarray:
        fed = {name: array for name, array in arrays.items() if name in names}
        result: np.ndarray = session.run(None, fed)[0]
        return result

    return call


def _openvino(path: Path, threads: int) -> Callable[[Arrays], np.ndarray]:
    """A model compiled for latency; OpenVINO takes bfloat16 by itself where the processor has it."""
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(openvino.convert_model(str(path)), "CPU", hints)
    names = {name for value in compiled.inputs for name in value.get_names()}
    request = compiled.create_infer_request()

    def call(arrays: Arrays) -> np.ndarray:
        fed = {name: array for name, array in arrays.items() if name in names}
        result: np.ndarray = request.infer(fed)[0].copy()
        return result

    return call


def _peak_mb() -> float:
    """Most memory that this process has had so far, libraries and Python included."""
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says may be the parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        try:
            if what == "load":
                worker = Worker(request["runtime"], Path(request["folder"]), request["settings"])
                answer: dict[str, Any] = {"load_seconds": worker.load_seconds}
            else:
                if "size" in request:
                    request["size"] = tuple(request["size"])
                answer = getattr(worker, what)(**request)
        except Exception as error:  # the other side says what it means
            lines = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {lines[0]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
