"""Conditional matrix multiplication: the op that every FFF layer runs on, and its implementations."""

from __future__ import annotations

from fffconvert.runtime import flops  # noqa: F401 (it registers its formula)
from fffconvert.runtime.activations import ACTIVATIONS, Activation
from fffconvert.runtime.ops import cmm
from fffconvert.runtime.reference import Weights

__all__ = ["ACTIVATIONS", "Activation", "Weights", "cmm"]
