"""Which blocks of a model are converted, and one specification for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from fffconvert.activation_names import ACTIVATION_NUMBERS
from fffconvert.errors import FFFError
from fffconvert.location import FFNSite, Sites
from fffconvert.options import ConvertOptions
from fffconvert.planning.file import SHAPE
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
                    f"`{flag}` {pattern!r} matches modules, but none that is a feedforward block; "
                    f"blocks are named like {sites[0].name!r}"
                )
            raise FFFError(f"`{flag}` {pattern!r} matches nothing; blocks are named like {sites[0].name!r}")
    included = [s for s in sites if not include or any(_matches(s.name, pattern) for pattern in include)]
    kept = [s for s in included if not any(_matches(s.name, pattern) for pattern in exclude)]
    if not kept:
        raise FFFError(f"`exclude` leaves none of the {len(included)} blocks; exclude fewer")
    return Sites(kept, sites.skipped)


def specs_for(sites: Sites, options: ConvertOptions) -> dict[str, FFFSpec]:
    """One specification per block.

    Args:
        sites: The blocks.
        options: What they become.

    Raises:
        FFFError: A number is out of range, or a block has an activation that FFF layers lack.
    """
    if options.specs is not None:
        return {site.name: _fitting(options.specs[site.name], site) for site in sites}
    return {site.name: _spec(site, options, options.shapes.get(site.name, {})) for site in sites}


def _spec(site: FFNSite, options: ConvertOptions, shape: Mapping[str, Any]) -> FFFSpec:
    sizes = {name: getattr(options, name) for name in SHAPE} | dict(shape)
    return FFFSpec(
        d_in=site.d_model,
        d_out=site.d_model,
        branch_outputs=options.layer is LayerForm.BRANCH,
        leaf_gated=bool(sizes["leaf_width"]) and site.gated,
        activation=known_activation(site.activation, site.name),
        feature_axis=site.placement.feature_axis,
        **sizes,
    )


def _fitting(spec: FFFSpec, site: FFNSite) -> FFFSpec:
    """A given specification, if a layer of it fits in the place of a block."""
    expected = {
        "d_in": site.d_model,
        "d_out": site.d_model,
        "leaf_gated": bool(spec.leaf_width) and site.gated,
        "feature_axis": site.placement.feature_axis,
    }
    for name, value in expected.items():
        if getattr(spec, name) != value:
            raise FFFError(
                f"the specification of block {site.name} has {name} {getattr(spec, name)}; expected {value}"
            )
    return spec


def known_activation(activation: str, block: str) -> str:
    """The activation of a block, as its layer is to have it.

    Raises:
        FFFError: FFF layers lack it.
    """
    if activation not in ACTIVATION_NUMBERS:
        raise FFFError(
            f"block {block} has an activation that FFF layers lack ({activation}); expected one of "
            f"{', '.join(ACTIVATION_NUMBERS)}: leave the block out with `exclude`"
        )
    return activation


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern matches a name, or some whole parts of it between dots."""
    return any(
        fnmatchcase(f".{name}.", f"{before}.{pattern}.{after}") for before in ("", "*") for after in ("", "*")
    )
