"""Transformers' architectures with known answers."""

from __future__ import annotations

from zoo.case import Case
from zoo.decoders import DECODERS
from zoo.encoders import ENCODERS
from zoo.seq2seq import SEQ2SEQ
from zoo.vision_speech import VISION_SPEECH

ARCHITECTURES: list[Case] = [*ENCODERS, *DECODERS, *SEQ2SEQ, *VISION_SPEECH]
