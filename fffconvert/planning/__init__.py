"""What each block becomes."""

from __future__ import annotations

from fffconvert.planning.file import Plan
from fffconvert.planning.spec import MAX_DEPTH, MAX_TREES, FFFSpec, LayerForm, leaf_in_words

__all__ = ["MAX_DEPTH", "MAX_TREES", "FFFSpec", "LayerForm", "Plan", "leaf_in_words"]
