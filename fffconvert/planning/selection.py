"""Which blocks of a model are converted, and one specification for each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from fffconvert.activation_names import ACTIVATION_NUMBERS
from fffconvert.errors import FFFError
from fffconvert.location import Sites
from fffconvert.planning.spec import FFFSpec, LayerForm


def select(sites: Sites, modules: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> Sites:
    """The blocks whose names match the patterns.

    Args:
        sites: All blocks of a model.
        modules: Names of all its modules, for the error messages.
        include: Shell-style patterns, matched against a block's whole name or any part between dots; a
            block must match one of them. Empty for all.
        exclude: Patterns of blocks to leave as they are.

    Raises:
        FFFError: Nothing is left to convert; the message says which of the ways it came to that.
    """
    if not sites:
        why = "; ".join(f"{skip.name or 'the model'}: {skip.reason}" for skip in sites.skipped[:3])
        raise FFFError(
            "the model has no feedforward block that can be converted"
            + (f" ({why})" if why else ": no linear, activation, linear beside a residual stream was found")
            + "; see fffconvert inspect"
        )
    for flag, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if any(_matches(site.name, pattern) for site in sites):
                continue
            if any(_matches(name, pattern) for name in modules):
                raise FFFError(
                    f"--{flag} {pattern!r} matches modules, but none that is a feedforward block; "
                    f"blocks are named like {sites[0].name!r}"
                )
            raise FFFError(f"--{flag} {pattern!r} matches nothing; blocks are named like {sites[0].name!r}")
    included = [s for s in sites if not include or any(_matches(s.name, pattern) for pattern in include)]
    kept = [s for s in included if not any(_matches(s.name, pattern) for pattern in exclude)]
    if not kept:
        raise FFFError(f"--exclude leaves none of the {len(included)} blocks; exclude fewer")
    return Sites(kept, sites.skipped)


def plan(
    sites: Sites,
    *,
    depth: int,
    trees: int = 1,
    trunk: int = 0,
    leaf_width: int = 0,
    leaf_sparsity: float = 0.0,
    form: LayerForm,
    shapes: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, FFFSpec]:
    """One specification per block.

    Args:
        sites: The blocks.
        depth: Depth of the trees.
        trees: Number of trees.
        trunk: Rank of the trunk.
        leaf_width: Neurons of a leaf block.
        leaf_sparsity: Share of them that a token skips.
        form: Form of the layers.
        shapes: What differs, by the names of blocks: some of `SHAPE`.

    Raises:
        FFFError: A number is out of range, or a block has an activation that FFF layers lack.
    """
    specs = {
        site.name: FFFSpec(
            d_in=site.d_model,
            d_out=site.d_model,
            depth=depth,
            trees=trees,
            trunk=trunk,
            branch_outputs=form is LayerForm.BRANCH,
            leaf_width=leaf_width,
            leaf_sparsity=leaf_sparsity,
            activation=known_activation(site.activation, site.name),
            feature_axis=site.placement.feature_axis,
        )
        for site in sites
    }
    for site in sites:
        spec = dataclasses.replace(specs[site.name], **(shapes or {}).get(site.name, {}))
        specs[site.name] = dataclasses.replace(spec, leaf_gated=bool(spec.leaf_width) and site.gated)
    return specs


def known_activation(activation: str, block: str) -> str:
    """The activation of a block, as its layer is to have it.

    Raises:
        FFFError: FFF layers lack it.
    """
    if activation not in ACTIVATION_NUMBERS:
        raise FFFError(
            f"block {block} has an activation that FFF layers lack ({activation}); expected one of "
            f"{', '.join(ACTIVATION_NUMBERS)}: leave the block out with --exclude"
        )
    return activation


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern matches a name, or some whole parts of it between dots."""
    return any(
        fnmatchcase(f".{name}.", f"{before}.{pattern}.{after}") for before in ("", "*") for after in ("", "*")
    )
