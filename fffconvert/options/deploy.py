"""Options of `deploy` and `export`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fffconvert.errors import FFFError
from fffconvert.options.common import Texts, Writing
from fffconvert.options.fields import option

if TYPE_CHECKING:
    from torch import nn

    from fffconvert.location.inputs import Inputs

TARGETS = ("cpu", "cuda")
QUANTIZED = ("int8", "none")
FORMATS = {"onnx": ".onnx", "onnx-standard": ".onnx", "aot": ".pt2"}
"""What can be exported, and how the name of such a file ends."""


@dataclass(frozen=True, kw_only=True)
class DeployOptions(Texts, Writing):
    """How a converted model is made to compute as fast as it can.

    Attributes:
        output: Folder to write, which loads deployed; without one a model given by name is only looked at.
        target: Where a model given by name will run: cpu or cuda. It is measured there.
        backend: What computes the layers: auto times what there is, or cpu, cupy, reference.
        dtype: Row type: float32, bfloat16, int8; auto takes smaller ones where they are faster and hardly
            change the outputs.
        quantize_linear: Linear layers beside the trees: int8, with attention's products in bfloat16, where
            that is faster here (the model is for inference alone then), or none; auto is int8 for a folder on
            the CPU, none for a model in memory.
        max_drop: Refuse if the outputs of a model given by name agree with those before by less than 1 minus
            this.
        text: Text to compare the outputs on: .txt or .jsonl files, or a name of datasets; by default English
            that comes with Python.
        trust_remote_code: Run code that the model brings along.
        originals: Original blocks by name, to fall back to where they are faster; by default those that
            `convert` keeps in this process.
        example_inputs: What one forward pass takes, where it cannot be guessed: tensor, tuple or mapping.
    """

    output: Path | None = option(None, short="-o")
    target: str = "cpu"
    backend: str = "auto"
    dtype: str = "auto"
    quantize_linear: str = "auto"
    max_drop: float = 0.05
    text: Iterable[Any] | None = None
    trust_remote_code: bool = False
    originals: Mapping[str, nn.Module] | None = option(None, python=True)
    example_inputs: Inputs | None = option(None, python=True)

    def __post_init__(self) -> None:
        check_quantized(self.quantize_linear, ("auto", *QUANTIZED))
        if self.target not in TARGETS:
            raise FFFError(f"`target` is {self.target!r}; expected {' or '.join(TARGETS)}")
        if self.target == "cuda" and self.quantize_linear == "int8":
            raise FFFError("`target=cuda`: int8 linear layers are for the CPU; add `quantize_linear=none`")
        if not 0 <= self.max_drop <= 1:
            raise FFFError(f"`max_drop` is {self.max_drop}; expected a share from 0 to 1, as in 0.05")


@dataclass(frozen=True)
class ExportOptions(Writing):
    """How a converted model is written for another runtime.

    Attributes:
        output: File to write, .onnx or .pt2; large weights go beside it, with .data behind the name.
        format: onnx: trees as one operator of ONNX Runtime; onnx-standard: standard operators alone; aot:
            compiled ahead of time by torch for this machine.
        dtype: Row type of the trees: float32, bfloat16 or int8.
        quantize_linear: Linear layers beside the trees in ONNX files: int8 or none.
        trust_remote_code: Run code that the model brings along.
        example_inputs: What one forward pass takes, where it cannot be guessed: tensor, tuple or mapping.
    """

    output: Path = option(short="-o")
    _: KW_ONLY
    format: str = "onnx"
    dtype: str = "float32"
    quantize_linear: str = "none"
    trust_remote_code: bool = False
    example_inputs: Inputs | None = option(None, python=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", Path(self.output).expanduser())
        check_quantized(self.quantize_linear)
        if self.format not in FORMATS:
            raise FFFError(f"`format` is {self.format!r}; expected one of {', '.join(FORMATS)}")
        if self.output.suffix != FORMATS[self.format]:
            raise FFFError(
                f"`output` is {self.output}; expected a name that ends in {FORMATS[self.format]} for "
                f"`format={self.format}`"
            )
        if self.format == "aot" and self.quantize_linear == "int8":
            raise FFFError("`format=aot` knows no int8 linear layers; expected `quantize_linear=none`")


def check_quantized(name: str, known: Sequence[str] = QUANTIZED) -> None:
    """Refuse what is not known.

    Raises:
        FFFError: Which it is, and what was expected.
    """
    if name not in known:
        raise FFFError(f"`quantize_linear` is {name!r}; expected {' or '.join(known)}")
