"""Processes that take turns: all but one stand still, so that no runtime's threads disturb another's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKER = "fffconvert.benchmarks.model.worker"


class WorkerError(RuntimeError):
    """A runtime could not do what was asked."""


class Runtime:
    """One runtime in its process, which runs only while it is asked.

    Args:
        name: Name of the runtime.
        folder: Where inputs and exported files lie.
        settings: Those of the benchmark, as plain values.

    Raises:
        WorkerError: It cannot be set up.
    """

    def __init__(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        threads = str(settings["threads"])
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment["PYTHONPATH"] = os.pathsep.join(part for part in sys.path if part)
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
            env=environment,
        )
        self._stopped = False
        try:
            self.load_seconds = float(
                self.ask("load", runtime=name, folder=str(folder), settings=settings)["load_seconds"]
            )
        except BaseException:
            self.close()
            raise

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Have the process do something, and stand still afterwards.

        Raises:
            WorkerError: It failed.
        """
        self._signal(stop=False)
        assert self._process.stdin is not None, "piped"
        assert self._process.stdout is not None, "piped"
        try:
            self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [
                "no message"
            ]
            raise WorkerError(f"{self.name}: its process ended ({self._process.wait()}): {said[-1]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        self._signal(stop=True)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def _signal(self, *, stop: bool) -> None:
        if stop != self._stopped and hasattr(signal, "SIGSTOP"):
            self._process.send_signal(signal.SIGSTOP if stop else signal.SIGCONT)
            self._stopped = stop
