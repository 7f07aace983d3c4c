"""matplotlib, which only figures need."""

from __future__ import annotations

from typing import Any

from fffconvert.errors import FFFError


def figure_class() -> Any:
    """Matplotlib's `Figure`, which draws without a screen; also a way to ask early whether it is there.

    Raises:
        FFFError: matplotlib is not installed.
    """
    try:
        from matplotlib import figure
    except ImportError:
        raise FFFError("--plot needs matplotlib; pip install 'fffconvert[plots]'") from None
    return figure.Figure
