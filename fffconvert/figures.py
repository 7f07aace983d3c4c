"""matplotlib, which only figures need."""

from __future__ import annotations

from typing import Any

from fffconvert.errors import need


def figure_class(needed_by: str = "`plot`", extra: str = "plots") -> Any:
    """Matplotlib's `Figure`, which draws without a screen; also a way to ask early whether it is there.

    Args:
        needed_by: What asks for it.
        extra: The extra of this package that brings it.

    Raises:
        FFFError: matplotlib is not installed.
    """
    need("matplotlib", needed_by, extra)
    from matplotlib import figure

    return figure.Figure
