"""Distillation: recipes that retrain a converted model with its teacher."""

from __future__ import annotations

from fffconvert.distillation.api import distill
from fffconvert.distillation.folders import Distilled, distill_folder, recipe_of_folder
from fffconvert.distillation.reading import read_recipe
from fffconvert.distillation.recipe import Recipe

__all__ = ["Distilled", "Recipe", "distill", "distill_folder", "read_recipe", "recipe_of_folder"]
