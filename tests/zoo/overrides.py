"""What the generic shrinking of `shrink.py` cannot know, by config type."""

from __future__ import annotations

from typing import Any

CLASSES: dict[str, str] = {}
"""Classes for types whose AutoModel class is not the one to run."""

OVERRIDES: dict[str, dict[str, Any]] = {}
"""Fields by dotted name, e.g. `text_config.hidden_size`."""
