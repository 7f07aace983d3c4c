"""What a layer benchmark measures, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fffconvert.errors import FFFError
from fffconvert.figures import figure_class
from fffconvert.plan import FFFSpec
from fffconvert.runtime.backends import on_device

TOKENS = (1, 8, 32, 128, 512, 2048, 16384)
DTYPES = {
    "cpu": ("float32", "bfloat16", "int8"),
    "cuda": ("float32", "float16", "bfloat16", "int8"),
}
"""Row types that can be measured on each device."""
PLOT_FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class LayerBench:
    """The settings of one run.

    Attributes:
        shape: d_model and d_hidden of the dense block replaced; None takes 768x3072, or the model's.
        forests: (trees, depth) of each layer.
        tokens: Tokens in one call.
        threads: Values for `torch.set_num_threads`; without meaning on CUDA.
        device: "cpu" or "cuda".
        dtypes: Row types; empty for all that the device has. The reference has none but float32 on the CPU,
            and no int8 on CUDA.
        backends: Which implementations of the op; empty for all that run on the device.
        model: A model whose real activations are measured beside random ones.
        blocks: Patterns of the model's blocks; empty for the middle one.
        train: Measure forward plus backward instead of inference.
        plot: File for the picture of time against depth.
        plot_tokens: Token counts in it.
        compile: Try torch.compile on the dense blocks.
        seconds: Time that each contestant gets for each figure.
        repeats: Least number of calls of each contestant.
        limit: Seconds after which a contestant begins no further call for a figure.
        seed: Of weights and random inputs.
    """

    shape: tuple[int, int] | None = None
    forests: tuple[tuple[int, int], ...] = ((1, 11),)
    tokens: tuple[int, ...] = TOKENS
    threads: tuple[int, ...] = (1,)
    device: str = "cpu"
    dtypes: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    model: str | None = None
    blocks: tuple[str, ...] = ()
    train: bool = False
    plot: Path | None = None
    plot_tokens: tuple[int, ...] = (1, 128, 2048)
    compile: bool = True
    seconds: float = 0.3
    repeats: int = 7
    limit: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_device()
        for name in ("tokens", "threads", "plot_tokens"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                found = ",".join(map(str, values)) or "empty"
                raise FFFError(
                    f"--{name.replace('_', '-')} is {found}; expected numbers from 1, as in 1,8,32"
                )
        known = DTYPES[self.device]
        if any(dtype not in known for dtype in self.dtypes):
            raise FFFError(f"--dtype is {','.join(self.dtypes)!r}; expected some of {','.join(known)}")
        object.__setattr__(self, "dtypes", self.dtypes or known)
        if not (self.seconds > 0 and self.limit > 0) or self.repeats < 1:
            raise FFFError(
                f"--seconds {self.seconds}, --limit {self.limit}, --repeats {self.repeats}; "
                "expected times above 0 and repeats from 1"
            )
        if not self.forests:
            raise FFFError("no layer to measure; give --trees and --depth, or --forest 8x8")
        for d in self.shape or ():
            if d < 1:
                raise FFFError(f"--shape holds {d}; expected D_MODELxD_HIDDEN from 1, as in 768x3072")
        for trees, depth in self.forests:
            FFFSpec(1, 1, depth, trees)  # checks both numbers
        if self.train and self.model is not None:
            raise FFFError("--train measures random inputs; leave out --model")
        if self.blocks and self.model is None:
            raise FFFError("--block names blocks of a model; give --model too")
        self._check_plot()
        object.__setattr__(self, "backends", self._runnable())

    def _check_device(self) -> None:
        if self.device not in DTYPES:
            raise FFFError(f"--device is {self.device!r}; expected one of {','.join(DTYPES)}")
        if self.device == "cpu":
            return
        own = [f.status() for f in on_device(self.device).values() if f.SUPPORT.device == self.device]
        if not any(status.available for status in own):
            raise FFFError(f"--device {self.device} cannot run here: {own[-1].reason}")
        for flag, given in (
            ("--train", self.train),
            ("--plot", self.plot is not None),
            ("--threads", self.threads != (1,)),
        ):
            if given:
                raise FFFError(
                    f"{flag} is measured on the CPU alone; leave it out, or --device {self.device}"
                )

    def _check_plot(self) -> None:
        if self.plot is None:
            return
        if self.plot.suffix not in PLOT_FORMATS:
            raise FFFError(f"--plot {self.plot}: expected a name that ends in {', '.join(PLOT_FORMATS)}")
        if not self.plot.resolve().parent.is_dir():
            raise FFFError(f"--plot {self.plot}: its folder does not exist; make it first")
        figure_class()  # says so now if there is none

    def _runnable(self) -> tuple[str, ...]:
        """The backends to measure, each of which can run here."""
        known = {name: found.status() for name, found in on_device(self.device).items()}
        for name in self.backends:
            if name not in known:
                raise FFFError(f"--backend is {name!r}; expected some of {','.join(known)}")
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
