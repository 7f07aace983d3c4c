"""What a backend says of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backend:
    """One implementation of the op.

    Attributes:
        name: What it is called on the command line.
        available: Whether it can run here.
        reason: Why not; for one that can, what it is.
    """

    name: str
    available: bool
    reason: str
