"""Calibration activations into a first FFF layer, in closed form: no gradient step."""

from __future__ import annotations

from fffconvert.fit.corpus import default_corpus, read_corpus
from fffconvert.fit.layer import fit_layer, r2
from fffconvert.fit.moments import token_weights

__all__ = ["default_corpus", "fit_layer", "r2", "read_corpus", "token_weights"]
