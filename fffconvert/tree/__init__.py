"""The fast feedforward layer."""

from __future__ import annotations

from fffconvert.tree.layer import FFFLayer

__all__ = ["FFFLayer"]
