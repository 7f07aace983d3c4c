"""Modules dropped and imported again, as notebooks that reload them do."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fffconvert.errors import FFFError
from fffconvert.runtime import Weights, cmm, registration

RELOADED = """
import copy, importlib, sys, warnings
warnings.simplefilter("error", category=UserWarning)
import torch, transformers
from torch.utils.flop_counter import FlopCounterMode
import fffconvert

def made():
    from fffconvert.planning import FFFSpec
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=90, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.BertForMaskedLM(config).eval()
    calibration = [{"input_ids": torch.randint(0, 90, (8, 40))} for _ in range(4)]
    return fffconvert.convert(model, depth=2, calibration=calibration)

ids = torch.arange(60).view(2, 30)

def answer(model):
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits
    model.train().zero_grad()
    torch.manual_seed(0)
    model(input_ids=ids).logits.square().sum().backward()
    model.eval()
    return [logits, *(p.grad for p in model.parameters() if p.grad is not None)]

old = made()
old.save_pretrained(sys.argv[1])
expected = answer(old)
def check(model):
    assert all(map(torch.equal, answer(model), expected))

for _ in range(2):
    for name in [name for name in sys.modules if name.split(".")[0] == "fffconvert"]:
        del sys.modules[name]
    check(old)
    fffconvert = importlib.import_module("fffconvert")
    check(transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1]))
    check(old)
    check(made())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        old(input_ids=ids)
    assert any("cmm" in str(op) for op in counter.get_flop_counts()["Global"]), counter.get_flop_counts()
importlib.reload(sys.modules["fffconvert.runtime.ops"])
importlib.reload(sys.modules["fffconvert.runtime.cpu"])
check(old)
old.save_pretrained(sys.argv[1] + "-again")
check(transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1] + "-again"))
"""


def test_models_of_before_and_after_a_reload_answer(tmp_path):
    command = [sys.executable, "-c", RELOADED, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reload_of_another_release_is_refused():
    with pytest.raises(
        FFFError, match=r"another release of fffconvert .* cmm takes other arguments; restart"
    ):
        registration.define("cmm", "(Tensor x) -> Tensor")


def test_the_newest_kernel_computes(monkeypatch):
    weights = Weights(torch.ones(1, 1, 1), torch.zeros(1, 1), torch.ones(1, 1, 1))
    before, calls = registration._NEWEST["cmm", "kernel"], []
    monkeypatch.setitem(registration._NEWEST, ("cmm", "kernel"), before)  # put back afterwards
    registration.kernel("cmm")(lambda *arguments: calls.append(1) or before(*arguments))
    cmm(torch.ones(2, 1), weights, "relu")
    assert calls
