"""Calibration activations into a first FFF layer, in closed form: no gradient step."""
