"""Conditional matrix multiplication: the op that every FFF layer runs on, and its implementations."""

from __future__ import annotations

from fffconvert.runtime import flops  # noqa: F401 (it registers its formula)
from fffconvert.runtime.activations import ACTIVATIONS, Activation
from fffconvert.runtime.inference import Inference
from fffconvert.runtime.ops import cmm, cmm_inference
from fffconvert.runtime.weights import VECTORS, Scales, Weights

__all__ = ["ACTIVATIONS", "VECTORS", "Activation", "Inference", "Scales", "Weights", "cmm", "cmm_inference"]
