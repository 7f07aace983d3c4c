"""Options of `estimate`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from fffconvert.errors import FFFError
from fffconvert.options.common import Reading, choice
from fffconvert.options.fields import option
from fffconvert.planning.spec import LayerForm

if TYPE_CHECKING:
    from fffconvert.location.inputs import Inputs


class Phase(str, Enum):
    """What one forward pass computes."""

    PREFILL = "prefill"
    """All positions of the context at once: encoders, scoring, reading a prompt."""
    DECODE = "decode"
    """One further token of each sequence; keys and values of the context are kept."""
    TRAIN = "train"
    """All positions, and the gradients: three times the multiply-adds of prefill."""

    @property
    def passes(self) -> int:
        """Multiply-adds in units of one forward pass. Reference: arXiv 2001.08361, section 2.1."""
        return 3 if self is Phase.TRAIN else 1


class Sweep(str, Enum):
    """What changes from row to row of a sweep."""

    DEPTH = "depth"
    CONTEXT = "context"
    BATCH = "batch"
    MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class EstimateOptions(Reading):
    """What is estimated.

    Attributes:
        depth: Depth of the trees; by default the least with as many nodes as the block has neurons.
        trees: Trees side by side; 1 by default.
        trunk: Rank of the always-active linear map beside the trees; 0 for none.
        active_fraction: Instead of `trees`: share of a block's multiply-adds that may be left.
        layer: Form of the layer: what is stored, not what is computed.
        context: Tokens of each sequence.
        batch: Sequences.
        phase: All positions at once, one further token of each sequence, or training.
        dtype: Of weights and activations: float32, bfloat16, int8, ….
        hardware: A machine's name (see --list), 'this' to measure the one at hand, or a .json file.
        train_tokens: Training tokens.
        example_inputs: What one forward pass of a module takes, where it cannot be guessed.
    """

    depth: int | None = None
    trees: int | None = None
    trunk: int = 0
    active_fraction: float | None = None
    layer: LayerForm = LayerForm.BRANCH
    context: int = 512
    batch: int = 1
    phase: Phase = Phase.PREFILL
    dtype: str = "float32"
    hardware: Any = option(None, metavar="TEXT")
    train_tokens: int = 1_000_000_000
    example_inputs: Inputs | None = option(None, python=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", choice(LayerForm, "layer", self.layer))
        object.__setattr__(self, "phase", choice(Phase, "phase", self.phase))
        tokens = self.train_tokens
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
            raise FFFError(f"`train_tokens` is {tokens!r}; expected a whole number from 0")
