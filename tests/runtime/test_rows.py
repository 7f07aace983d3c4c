from __future__ import annotations

import torch
from zoo.reference import normals, tree_tensors

from fffconvert.runtime import VECTORS, Scales, Weights
from fffconvert.runtime.rows import store_rows


def draw() -> Weights:
    generator = torch.Generator().manual_seed(0)
    shape = {
        "trees": 2,
        "depth": 2,
        "d_in": 9,
        "d_out": 7,
        "branches": 2,
        "leaf_width": 3,
        "gated": True,
        "sparse": True,
    }
    return Weights(**tree_tensors(normals(generator, torch.float32), **shape))


def test_int8_rows_are_off_by_half_a_step_at_most():
    weights = draw()
    weights.in_weight[1, 2] = 0
    stored, scales = store_rows(weights, torch.int8)
    for name, scale in scales._asdict().items():
        rows, given = getattr(stored, name), getattr(weights, name)
        assert rows.dtype == torch.int8
        assert torch.equal(rows.float().abs().amax(-1), torch.where(scale > 0, 127.0, 0.0))
        assert ((rows * scale[..., None] - given).abs() <= 0.501 * scale[..., None]).all()
    assert scales.in_weight[1, 2] == 0


def test_floating_point_rows_have_no_scales_and_biases_are_float32():
    stored, scales = store_rows(Weights(*(w.bfloat16() for w in draw())), torch.bfloat16)
    assert scales == Scales()
    for name, tensor in stored._asdict().items():
        assert tensor.dtype == (torch.float32 if name in VECTORS else torch.bfloat16)
