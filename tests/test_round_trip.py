"""Every architecture of the zoo: converted, saved, and read by plain `from_pretrained` in a new process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from zoo import ARCHITECTURES
from zoo.case import run

from fffconvert import hub, surgery
from fffconvert.location import locate
from fffconvert.options import ConvertOptions
from fffconvert.planning.selection import specs_for
from fffconvert.tree import FFFLayer

CASES = [case for case in ARCHITECTURES if case.blocks]
READER = """
import json, sys
import torch, transformers
import fffconvert

torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from zoo.case import run
results = {}
for name, folder in json.loads(sys.argv[2]).items():
    try:
        saved = torch.load(folder + "/expected.pt", weights_only=True)
        model = getattr(transformers, saved["class"]).from_pretrained(folder).eval()
        found = run(model, saved["inputs"])
        results[name] = "equal" if torch.equal(found, saved["output"]) else (
            f"differs by {float((found - saved['output']).abs().max()):.1e}"
        )
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, str]:
    """What a new process found in the folder of each case."""
    folders = {}
    for case in CASES:
        model, inputs = case.build(), case.inputs()
        sites = locate(model, inputs)
        specs = specs_for(sites, ConvertOptions(depth=2, trees=2, trunk=1))
        surgery.replace(model, {site: FFFLayer(specs[site.name]) for site in sites})
        hub.mark_converted(model)
        folder = tmp_path_factory.mktemp(case.name)
        model.save_pretrained(folder)
        expected = {"class": type(model).__name__, "inputs": inputs, "output": run(model, inputs)}
        torch.save(expected, folder / "expected.pt")
        folders[case.name] = str(folder)
    command = [sys.executable, "-c", READER, str(Path(__file__).parent), json.dumps(folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_are_equal_in_a_new_process(outcomes: dict[str, str], case):
    assert outcomes[case.name] == "equal"
