from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import uuid
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
sys.path.insert(0, str(Path(__file__).parent))
os.environ["FFFCONVERT_CACHE"] = tempfile.mkdtemp(prefix="fffconvert-tests-")

import pytest
import torch

torch.set_num_threads(1)

CACHE = Path(os.environ["FFFCONVERT_CACHE"])
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def own_cache():
    """No test finds what another stored."""
    with pytest.MonkeyPatch.context() as patch:  # the test's own is undone before other fixtures end
        patch.setenv("FFFCONVERT_CACHE", str(CACHE / uuid.uuid4().hex))
        yield


@pytest.fixture(autouse=True)
def forget_compiled_code():
    """torch.compile takes a limited number of variants of one function in a process."""
    yield
    torch._dynamo.reset()
