"""The model card says what was converted, kept and spent, and how to load the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fffconvert.hub.card import model_card
from fffconvert.hub.metrics import BlockResult, Metrics, Totals


def block(name: str, **values: Any) -> BlockResult:
    defaults = {
        "trees": 1,
        "depth": 11,
        "trunk": 4,
        "leaf_width": 0,
        "active_width": 16,
        "active_fraction": 0.25,
        "r2_heldout": 0.75,
        "token_r2_heldout": 0.75,
        "parameters": 3000,
        "parameters_before": 1000,
        "macs_share": 0.3,
    }
    return BlockResult(name=name, **defaults | values)


BLOCKS = [
    block("layer.0"),
    block("layer.1", active_fraction=0.5, token_r2_heldout=0.25, macs_share=0.1),
    block("layer.2", active_fraction=1.0, token_r2_heldout=0.9, macs_share=0.2),
]


def test_totals_are_weighted_by_the_blocks_share():
    totals = Totals.of(BLOCKS)
    assert totals.macs_left == pytest.approx((0.3 * 0.25 + 0.1 * 0.5 + 0.2) / 0.6)
    assert totals.model_macs_left == pytest.approx(0.4 + 0.3 * 0.25 + 0.1 * 0.5 + 0.2)
    assert (totals.r2_median, totals.r2_lowest, totals.blocks) == (0.75, 0.25, 3)
    assert (totals.parameters, totals.parameters_before) == (9000, 3000)


def test_the_card_tells_both_sides():
    card = model_card({"model": "somebody/original"}, Metrics(tuple(BLOCKS)))
    assert "| layer.1 | 1x11 | 4 | 0 | 16 | 50.0% | 0.750 | 0.250 | 1,000 | 3,000 |" in card
    assert "9,000 parameters, 3,000 before (3.00 times as many)" in card
    assert "0.750 (median), 0.250 (lowest)" in card
    assert "import fffconvert" in card
    assert "Nothing has been trained" in card


@pytest.mark.parametrize(
    ("name", "base"),
    [("somebody/original", "somebody/original"), ("pkg:dist/model", None), ("{folder}", None)],
    ids=["hub id", "package", "folder"],
)
def test_only_a_hub_id_is_a_base_model_to_the_hub(tmp_path: Path, name: str, base: str | None):
    card = model_card({"model": name.format(folder=tmp_path)}, Metrics(tuple(BLOCKS)))
    _, head, _ = card.split("---\n", 2)
    assert yaml.safe_load(head).get("base_model") == base
