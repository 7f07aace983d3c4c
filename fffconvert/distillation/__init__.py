"""Distillation: recipes that retrain a converted model with its teacher."""

from __future__ import annotations

from fffconvert.distillation.api import distill
from fffconvert.distillation.folders import Distilled, distill_model
from fffconvert.distillation.reading import read_recipe
from fffconvert.distillation.recipe import Recipe

__all__ = ["Distilled", "Recipe", "distill", "distill_model", "read_recipe"]
