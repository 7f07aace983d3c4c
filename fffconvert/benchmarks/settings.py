"""What a layer benchmark measures here: its options, held against the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fffconvert.errors import FFFError
from fffconvert.figures import figure_class
from fffconvert.options import BenchLayerOptions
from fffconvert.runtime.backends import on_device

DTYPES = {
    "cpu": ("float32", "bfloat16", "int8"),
    "cuda": ("float32", "float16", "bfloat16", "int8"),
}
"""Row types that can be measured on each device."""


@dataclass(frozen=True)
class LayerBench(BenchLayerOptions):
    """The settings of one run: the options, with all that can run here where they name nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_device()
        known = DTYPES[self.device]
        if any(dtype not in known for dtype in self.dtypes):
            raise FFFError(f"`dtypes` is {','.join(self.dtypes)!r}; expected some of {','.join(known)}")
        object.__setattr__(self, "dtypes", self.dtypes or known)
        if self.plot is not None:
            figure_class()  # says so now if there is none
        object.__setattr__(self, "backends", self._runnable())

    def _check_device(self) -> None:
        if self.device not in DTYPES:
            raise FFFError(f"`device` is {self.device!r}; expected one of {','.join(DTYPES)}")
        if self.device == "cpu":
            return
        own = [f.status() for f in on_device(self.device).values() if f.SUPPORT.device == self.device]
        if not any(status.available for status in own):
            raise FFFError(f"`device={self.device}` cannot run here: {own[-1].reason}")
        for flag, given in (
            ("train", self.train),
            ("plot", self.plot is not None),
            ("threads", self.threads != (1,)),
        ):
            if given:
                raise FFFError(
                    f"`{flag}` is measured on the CPU alone; leave it out, or `device={self.device}`"
                )

    def _runnable(self) -> tuple[str, ...]:
        """The backends to measure, each of which can run here."""
        known = {name: found.status() for name, found in on_device(self.device).items()}
        for name in self.backends:
            if name not in known:
                raise FFFError(f"`backends` holds {name!r}; expected some of {','.join(known)}")
            if not known[name].available:
                raise FFFError(f"backend {name} cannot run here: {known[name].reason}; see fffconvert info")
        return self.backends or tuple(sorted(name for name, found in known.items() if found.available))

    @property
    def variants(self) -> Iterator[tuple[str, str]]:
        """Each backend with each of its row types."""
        known = on_device(self.device)
        for backend in self.backends:
            for dtype in self.dtypes if backend != "reference" else self._reference_dtypes():
                if getattr(torch, dtype) in known[backend].SUPPORT.rows:
                    yield backend, dtype

    def _reference_dtypes(self) -> tuple[str, ...]:
        if self.device == "cpu":
            return ("float32",)
        return tuple(dtype for dtype in self.dtypes if dtype != "int8")
