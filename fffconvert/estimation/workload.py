"""What a model is asked to do: how many sequences of how many tokens, in which phase."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fffconvert.errors import FFFError
from fffconvert.options.estimate import Phase

LARGEST = 1 << 40


class Stream(str, Enum):
    """What a number of rows grows with."""

    TOKEN = "token"
    """The tokens that the model, or its encoder, reads."""
    DECODER = "decoder token"
    """The tokens that the decoder of an encoder-decoder reads."""
    SEQUENCE = "sequence"
    """Nothing but the batch: poolers, and inputs of one size such as images."""
    FORWARD = "forward pass"
    """Nothing at all: tables of relative positions."""


@dataclass(frozen=True)
class Workload:
    """Size of one forward pass.

    Attributes:
        batch: Sequences.
        context: Tokens of each, in an encoder-decoder of the encoder and of the decoder alike.
        phase: What is computed.
        generates: The stream that grows token by token, for the phase decode.
    """

    batch: int = 1
    context: int = 512
    phase: Phase = Phase.PREFILL
    generates: Stream | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "context"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
                raise FFFError(f"{name} is {value!r}; expected a whole number from 1")
        if self.phase is Phase.DECODE and self.generates is None:
            raise FFFError(
                "the phase is decode, but this model does not generate token by token; use prefill or train"
            )

    def length(self, stream: Stream) -> int:
        """Positions of a stream in each sequence."""
        return self.context if stream in (Stream.TOKEN, Stream.DECODER) else 1

    def computed(self, stream: Stream) -> int:
        """Positions of a stream that this pass computes anew, in all sequences."""
        if stream is Stream.FORWARD:
            return 1
        if self.phase is Phase.DECODE:
            return self.batch if stream is self.generates else 0
        return self.batch * self.length(stream)
