"""From times to rows of ratios, and from rows to geometric means over the token counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from statistics import geometric_mean
from typing import Any

from fffconvert.benchmarks.contestants import Entry
from fffconvert.benchmarks.timing import Timing
from fffconvert.benchmarks.workload import Workload

GROUP = ("layer", "inputs", "mode", "backend", "dtype", "threads")
RATIOS = (
    "speedup_vs_block",
    "speedup_vs_tree_size",
    "speedup_vs_int8_dense",
    "speedup_vs_bfloat16_dense",
    "speedup_vs_masked_dense",
    "speedup_vs_fused_block",
    "speedup_vs_fused_tree_size",
)
UNMEASURED = dict.fromkeys(field.name for field in fields(Timing))
UNCHECKED = {"max_error": None, "left_out": None, "path_agreement": None}


def rows(
    workload: Workload,
    entries: Sequence[Entry],
    times: Mapping[str, Timing],
    errors: Mapping[str, Mapping[str, float | None]],
    **common: Any,
) -> Iterator[dict[str, Any]]:
    """One row for each contestant; of one that was skipped it has the reason, and no figures.

    Args:
        workload: What was computed.
        entries: The contestants.
        times: By key of entry, of those that were not skipped.
        errors: What a check found, by key of entry.
        **common: Fields that all rows share: mode, threads, tokens.
    """
    bound = workload.bound(workload.tree_size)
    ran = [entry for entry in entries if entry.key in times]
    fused = [entry for entry in ran if entry.variant == "fused"]
    for entry in entries:
        own, is_layer = times.get(entry.key), entry.backend in ("cpu", "cupy", "reference")
        best = {
            "block": _best(ran, times, "block", entry.against),
            "tree_size": _best(ran, times, "tree_size", entry.against),
            "int8_dense": _best(ran, times, "tree_size", "int8", entry.dtype),
            "bfloat16_dense": _best(ran, times, "tree_size", "bfloat16", entry.dtype),
            "masked_dense": _best(ran, times, "masked_dense", "float32"),
            "fused_block": _best(fused, times, "block", entry.against),
            "fused_tree_size": _best(fused, times, "tree_size", entry.against),
        }
        ratio = {
            name: times[e.key].median_us / own.median_us if e and own else None for name, e in best.items()
        }
        against = ratio["tree_size"]
        yield {
            "layer": workload.name,
            "d_model": workload.layer.spec.d_in,
            "d_hidden": workload.d_hidden,
            "inputs": workload.inputs,
            **common,
            "backend": entry.backend,
            "dtype": entry.dtype,
            "variant": entry.variant,
            "skipped": entry.skipped,
            **(vars(own) if own else UNMEASURED),
            **{f"speedup_vs_{name}": value for name, value in ratio.items()},
            "block_baseline": best["block"].variant if best["block"] else None,
            "tree_size_baseline": best["tree_size"].variant if best["tree_size"] else None,
            "bound_vs_block": workload.block_bound if is_layer else None,
            "bound_vs_tree_size": bound if is_layer else None,
            "share_of_bound": against / bound if is_layer and against else None,
            "warm_output_us": None,
            "warm_page_faults": None,
            "bytes": None,
            "gb_s": None,
            "share_of_bandwidth": None,
            **errors.get(entry.key, UNCHECKED),
        }


def _best(
    entries: Iterable[Entry], times: Mapping[str, Timing], backend: str, dtype: str, own: str | None = None
) -> Entry | None:
    """The fastest form of a baseline; None if there is none, or if `own` is given and another dtype."""
    if own not in (None, dtype):
        return None
    forms = [entry for entry in entries if (entry.backend, entry.dtype) == (backend, dtype)]
    return min(forms, key=lambda entry: times[entry.key].median_us, default=None)


def summarise(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Geometric and smallest ratios of each layer, backend and row type over the token counts.

    Returns:
        Rows with the fields of `GROUP`; `geomean_` and `min_` of each ratio that was measured; the bounds by
        counting; and `share_of_bound`, the geometric mean against the tree's size over its bound.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["bound_vs_block"] is not None:
            groups.setdefault(tuple(row[name] for name in GROUP), []).append(row)
    summary = []
    for key, members in groups.items():
        found: dict[str, Any] = dict(zip(GROUP, key, strict=True))
        for name in RATIOS:
            ratios = [row[name] for row in members if row[name] is not None]
            short = name.removeprefix("speedup_")
            found[f"geomean_{short}"] = geometric_mean(ratios) if ratios else None
            found[f"min_{short}"] = min(ratios, default=None)
        bound = members[0]["bound_vs_tree_size"]
        found["bound_vs_block"] = members[0]["bound_vs_block"]
        found["bound_vs_tree_size"] = bound
        found["share_of_bound"] = found["geomean_vs_tree_size"] / bound
        found["tokens"] = [row["tokens"] for row in members]
        summary.append(found)
    return summary
