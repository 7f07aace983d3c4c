"""Distillation: recipes that retrain a converted model with its teacher."""

from __future__ import annotations

from fffconvert.distill.api import distill
from fffconvert.distill.folders import Distilled, distill_model
from fffconvert.distill.reading import from_dict, read_recipe
from fffconvert.distill.recipe import Recipe

__all__ = ["Distilled", "Recipe", "distill", "distill_model", "from_dict", "read_recipe"]
