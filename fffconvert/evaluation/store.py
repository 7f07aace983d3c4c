"""Measured results on disk, by the content that they depend on, so that nothing is measured twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fffconvert.records import plain
from fffconvert.store import written


def default_folder() -> Path:
    """Where results are kept unless another folder is named."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fffconvert" / "evaluations"


class Store:
    """Measured results.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def once(self, key: str, measure: Callable[[], Any]) -> dict[str, Any]:
        """In plain values what was measured under a key (`fffconvert.store.digest`), or is measured now."""
        path = self.folder / f"{key}.json"
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        result: dict[str, Any] = plain(measure())
        with written(path) as partial:
            partial.write_text(json.dumps(result), encoding="utf-8")
        return result
