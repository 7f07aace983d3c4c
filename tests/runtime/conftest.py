from __future__ import annotations

import pytest

from fffconvert.runtime import cpu


@pytest.fixture(params=cpu.instruction_sets() or [None], ids=str)
def instruction_set(request):
    """Each instruction set that the library has and the processor runs, not the best alone."""
    before = cpu.instruction_set()
    if request.param is not None:
        cpu.use_instruction_set(request.param)
    yield request.param
    if request.param is not None:
        cpu.use_instruction_set(before)
