"""Options of `bench` and `bench_layer`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from importlib.util import find_spec
from pathlib import Path

from fffconvert.errors import FFFError
from fffconvert.options.fields import option
from fffconvert.planning.spec import FFFSpec

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
PLOT_FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How a converted model is timed against its original.

    Attributes:
        baselines: What the original runs on: torch, compile, ort, ort-int8, openvino, or some of them.
        sizes: BATCHxLENGTH of the inputs, as in 1x32,8x128.
        threads: Threads of every runtime.
        generate: For a causal model: tokens to generate one by one; 0 for none.
        depth: Depth of random trees in any model's blocks, whose speed is so known before anything is fitted.
        trees: How many of them.
        original: The dense model, where the folder's config does not tell.
        profile: Time the parts of the model too.
        task: Similarity task on which every runtime is scored, as in sts-b.
        data_dir: Folder of the task's data; by default it comes from the hub.
        output: File to write; by default bench.json in the model's folder.
        seconds: Time for each runtime and size.
        trust_remote_code: Run code that the model brings along.
    """

    baselines: tuple[str, ...] = ("torch", "ort-int8")
    sizes: tuple[tuple[int, int], ...] = ((1, 32), (1, 128), (8, 128))
    threads: int = 1
    generate: int = 0
    depth: int | None = None
    trees: int = 1
    original: str | None = None
    profile: bool = True
    task: str = ""
    data_dir: Path | None = None
    output: Path | None = option(None, short="-o")
    seconds: float = 3.0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in self.baselines:
            if name not in BASELINES:
                raise FFFError(f"`baselines` holds {name!r}; expected some of {','.join(BASELINES)}")
            if missing := missing_packages(name):
                raise FFFError(
                    f"`baselines={name}` needs {', '.join(missing)}: pip install 'fffconvert[deploy]'"
                )
        if not self.sizes or min(map(min, self.sizes)) < 1:
            raise FFFError("`sizes` is empty or holds 0; expected BATCHxLENGTH, as in 1x32,8x128")
        if self.task and self.depth is not None:
            raise FFFError("`task`: random trees (`depth`) retain nothing; expected a converted model")
        if self.threads < 1 or self.generate < 0 or not self.seconds > 0:
            raise FFFError("`threads`, `generate` and `seconds`: expected from 1, from 0, and above 0")
        if self.depth is not None:
            FFFSpec(1, 1, self.depth, self.trees)  # checks both numbers
        if self.output is not None and not self.output.resolve().parent.is_dir():
            raise FFFError(f"`output` is {self.output}: its folder does not exist; make it first")


@dataclass(frozen=True)
class BenchLayerOptions:
    """How FFF layers are timed against dense blocks.

    Attributes:
        model: A model whose real activations are measured beside random ones.
        shape: D_MODELxD_HIDDEN of the dense block replaced; 768x3072 by default, or that of the model.
        forests: TREESxDEPTH of each layer, as in 1x11,8x8.
        sizes: Tokens in one call, as in 1,128.
        threads: Threads of torch, on the CPU, as in 1,2.
        device: cpu or cuda.
        dtypes: Row types: float32, bfloat16, int8, on CUDA float16 too; all by default.
        backends: cpu, reference, or cupy, reference on CUDA; those that run here by default.
        blocks: Blocks of the model, as in layer.0; its middle one by default.
        train: Forward plus backward instead of inference.
        plot: Draw time against depth 4 to 15 into this file: .png, .svg or .pdf.
        plot_sizes: Tokens in one call of the plot.
        compile: Try torch.compile on the dense blocks.
        seconds: Time for each contestant and figure.
        repeats: Least calls of each contestant.
        limit: Seconds after which a contestant makes no further call.
        seed: Of weights and random inputs.
    """

    model: str | None = option(None, python=True)
    _: KW_ONLY
    shape: tuple[int, int] | None = None
    forests: tuple[tuple[int, int], ...] = ((1, 11),)
    sizes: tuple[int, ...] = (1, 8, 32, 128, 512, 2048, 16384)
    threads: tuple[int, ...] = (1,)
    device: str = "cpu"
    dtypes: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    blocks: tuple[str, ...] = option((), flag="--block")
    train: bool = False
    plot: Path | None = None
    plot_sizes: tuple[int, ...] = (1, 128, 2048)
    compile: bool = True
    seconds: float = 0.3
    repeats: int = 7
    limit: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("sizes", "threads", "plot_sizes"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                found = ",".join(map(str, values)) or "empty"
                raise FFFError(f"`{name}` is {found}; expected numbers from 1, as in 1,8,32")
        if not (self.seconds > 0 and self.limit > 0) or self.repeats < 1:
            raise FFFError(
                f"`seconds` is {self.seconds}, `limit` {self.limit}, `repeats` {self.repeats}; "
                "expected times above 0 and repeats from 1"
            )
        if self.train and self.model is not None:
            raise FFFError("`train` measures random inputs; leave out the model")
        if self.blocks and self.model is None:
            raise FFFError("`blocks` names blocks of a model; give the model too")
        if not self.forests:
            raise FFFError("no layer to measure; give `forests`, as in 8x8")
        if self.shape is not None and min(self.shape) < 1:
            raise FFFError("`shape` holds 0; expected D_MODELxD_HIDDEN from 1, as in 768x3072")
        for trees, depth in self.forests:
            FFFSpec(1, 1, depth, trees)  # checks both numbers
        if self.plot is not None and self.plot.suffix not in PLOT_FORMATS:
            raise FFFError(f"`plot` is {self.plot}; expected a name that ends in {', '.join(PLOT_FORMATS)}")
        if self.plot is not None and not self.plot.resolve().parent.is_dir():
            raise FFFError(f"`plot` is {self.plot}: its folder does not exist; make it first")


def missing_packages(baseline: str) -> list[str]:
    """What a baseline needs and is not installed."""
    needed = [BASELINES[baseline], *(("onnx", "onnxscript") if baseline in EXPORTED else ())]
    return [package for package in needed if package is not None and find_spec(package) is None]
