"""What a benchmark of a whole model measures, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fffconvert.errors import FFFError
from fffconvert.planning import FFFSpec

BASELINES = {
    "torch": None,
    "compile": None,
    "ort": "onnxruntime",
    "ort-int8": "onnxruntime",
    "openvino": "openvino",
}
"""What a converted model can be compared with, and the package that each needs."""
EXPORTED = ("ort", "ort-int8", "openvino")
"""Those that run an ONNX file."""
EXPORTED_TREES = {"ort": "exported", "ort-int8": "exported-int8"}
"""The converted model in the same runtime, by the baseline that it is to be compared with."""
SIZES = ((1, 32), (1, 128), (8, 128))


@dataclass(frozen=True)
class ModelBench:
    """The settings of one run.

    Attributes:
        model: A converted or deployed folder; with `depth`, any model, whose blocks are then replaced by
            random layers in memory: its speed can be known before anything is fitted.
        baselines: Some of `BASELINES`, for the dense original.
        sizes: (batch, length) of the inputs.
        threads: Threads of every runtime.
        generate: Tokens to generate one by one, for causal models; 0 for none.
        depth: Depth of random trees; None for a model that is converted.
        trees: How many.
        original: The dense model, where a folder's config does not tell.
        seconds: Time for each runtime and size.
        profile: Time the parts of the model too.
        trust_remote_code: Run code that the model brings along.
        task: Similarity task on which every runtime of a sentence encoder is scored; "" for none.
        data_dir: Folder of its data; None to take it from the hub.
    """

    model: str
    baselines: tuple[str, ...] = ("torch",)
    sizes: tuple[tuple[int, int], ...] = SIZES
    threads: int = 1
    generate: int = 0
    depth: int | None = None
    trees: int = 1
    original: str | None = None
    seconds: float = 3.0
    profile: bool = True
    trust_remote_code: bool = False
    task: str = ""
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        for name in self.baselines:
            if name not in BASELINES:
                raise FFFError(f"--baselines holds {name!r}; expected some of {','.join(BASELINES)}")
            if missing := missing_packages(name):
                raise FFFError(
                    f"--baselines {name} needs {', '.join(missing)}: pip install 'fffconvert[deploy]'"
                )
        if not self.sizes or min(map(min, self.sizes)) < 1:
            raise FFFError("--sizes is empty or holds 0; expected BATCHxLENGTH, as in 1x32,8x128")
        if self.task and self.depth is not None:
            raise FFFError("--task: random trees (--depth) keep nothing; expected a converted MODEL")
        if self.threads < 1 or self.generate < 0 or not self.seconds > 0:
            raise FFFError("--threads, --generate and --seconds: expected from 1, from 0, and above 0")
        if self.depth is not None:
            FFFSpec(1, 1, self.depth, self.trees)  # checks both numbers


def missing_packages(baseline: str) -> list[str]:
    """What a baseline needs and is not installed."""
    needed = [BASELINES[baseline], *(("onnx", "onnxscript") if baseline in EXPORTED else ())]
    return [package for package in needed if package is not None and find_spec(package) is None]
