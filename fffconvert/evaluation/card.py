"""The model card's section on quality, from `eval.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fffconvert.cells import Column, cell
from fffconvert.errors import FFFError, first_line
from fffconvert.evaluation.compare import TaskScore
from fffconvert.evaluation.results import RESULTS, Evaluation
from fffconvert.hub.card import CARD, QUALITY_ENDS, QUALITY_STARTS, section
from fffconvert.records import load
from fffconvert.store import written

CONTROLS = (
    "Controls of the same budget: a dense block of the same active width, the blocks ablated, random "
    "routing. A converted model that does not beat them gained nothing by its trees. What was "
    "recovered is unclear where deleting the blocks costs nothing that shows. `fffconvert report` "
    "shows more."
)
COLUMNS: dict[str, Column] = {
    "metric": "metric",
    "converted": "value:.3f",
    "95 % interval": lambda task: "–" if task.ci95 is None else f"{task.ci95[0]:.3f} to {task.ci95[1]:.3f}",
    "original": "teacher:.3f",
    "dense": "dense:.3f",
    "ablated": "ablated:.3f",
    "random routing": "random_routing:.3f",
    "retained": "retained:.1%",
    "recovered": lambda task: "unclear" if task.recovered_unclear else cell(task, "recovered:.1%", "–"),
}


def quality(tasks: Mapping[str, TaskScore]) -> str:
    """The section, of one task at least."""
    lines = [f"| {' | '.join(('task', *COLUMNS))} |", f"|{' --- |' * (1 + len(COLUMNS))}"]
    for name, task in tasks.items():
        called = f"{name} (first {task.limit:,} rows only)" if task.limit else name
        cells = (cell(task, column, "–") for column in COLUMNS.values())
        lines += [f"| {' | '.join((called, *cells))} |"]
    return section([*lines, "", CONTROLS])


def update_card(folder: Path) -> bool:
    """Bring the card's figures up to what `eval.json` says; the rest of the card stays as it is.

    Args:
        folder: A converted model.

    Returns:
        Whether the card was changed: not if nothing is new, or if somebody took the marks out of it.

    Raises:
        FFFError: `eval.json` or the card cannot be read, or the card not be written.
    """
    card, document = folder / CARD, folder / RESULTS
    if not card.is_file() or not document.is_file():
        return False
    try:
        before = card.read_text(encoding="utf-8")
        found = load(Evaluation, document)
    except (OSError, ValueError) as error:
        raise FFFError(
            f"cannot read {document}: {first_line(error)}; run fffconvert evaluate again"
        ) from None
    start, end = before.find(QUALITY_STARTS), before.find(QUALITY_ENDS)
    measured = quality(found.tasks) if found.tasks else section()
    after = before[:start] + measured + before[end + len(QUALITY_ENDS) :]
    if not 0 <= start < end or after == before:
        return False
    try:
        with written(card) as partial:
            partial.write_text(after, encoding="utf-8")
    except OSError as error:
        raise FFFError(f"cannot write {card}: {error.strerror}; free some space") from None
    return True
