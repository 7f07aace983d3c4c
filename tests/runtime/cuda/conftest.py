from __future__ import annotations

import pytest
from runtime.cuda.emulation import installed


@pytest.fixture
def stand_in():
    with installed() as cupy:
        yield cupy
