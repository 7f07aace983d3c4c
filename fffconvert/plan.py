"""What each block becomes: the specification of an FFF layer, and a plan of one per located block."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from fffconvert.errors import FFFError, first_line
from fffconvert.locate import Sites
from fffconvert.runtime.activations import ACTIVATIONS

MAX_DEPTH = 20
"""2^21 - 1 nodes; at d_model 768 a deeper tree would need over 12 GB of float32 rows."""
MAX_TREES = 65_536
MAX_WIDTH = 1 << 20


@dataclass(frozen=True)
class FFFSpec:
    """Shape and options of one FFF layer.

    Attributes:
        d_in: Width of the input, in features.
        d_out: Width of the output, in features.
        depth: Depth D of each tree; levels 0..D, 2^(D+1) - 1 nodes.
        trees: Number of trees T side by side.
        trunk: Rank R of the always-active linear map beside the trees; 0 for none.
        branch_outputs: A node has an output row for each of its two branches, and each path a constant.
        leaf_width: Neurons L in the dense block that each of the 2^(D+1) path ends holds; 0 for none.
        leaf_sparsity: Share of a leaf's neurons that a token skips once their activation is known to be small
            (of all tokens and neurons on the text that the layer was fitted on); 0 for none.
        leaf_gated: The leaf blocks are gated: the activation of one projection times a second.
        activation: Name of the activation, a key of `fffconvert.runtime.activations.ACTIVATIONS`.
        feature_axis: Axis of the input that holds the features (-1, or 1 for convolution layouts).

    Reference: arXiv 2311.10770, section 3; arXiv 2308.14711 for leaf blocks; arXiv 2404.08763 for thresholds.
    """

    d_in: int
    d_out: int
    depth: int
    trees: int = 1
    trunk: int = 0
    branch_outputs: bool = False
    leaf_width: int = 0
    leaf_sparsity: float = 0.0
    leaf_gated: bool = False
    activation: str = "gelu"
    feature_axis: int = -1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("d_in", 1, MAX_WIDTH),
            ("d_out", 1, MAX_WIDTH),
            ("depth", 0, MAX_DEPTH),
            ("trees", 1, MAX_TREES),
            ("trunk", 0, MAX_WIDTH),
            ("leaf_width", 0, MAX_WIDTH),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise FFFError(f"{name} is {value!r}; expected an integer from {low} to {high}")
        sparsity = self.leaf_sparsity
        if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
            raise FFFError(f"leaf_sparsity is {sparsity!r}; expected a share from 0 to below 1")
        if sparsity and not self.leaf_width:
            raise FFFError(f"leaf_sparsity is {sparsity} without leaf blocks; expected leaf_width too")
        for name in ("branch_outputs", "leaf_gated"):
            if not isinstance(getattr(self, name), bool):
                raise FFFError(f"{name} is {getattr(self, name)!r}; expected true or false")
        if not isinstance(self.feature_axis, int) or self.feature_axis not in (-1, 1):
            raise FFFError(f"feature_axis is {self.feature_axis!r}; expected -1 or 1")
        if self.activation not in ACTIVATIONS:
            raise FFFError(
                f"unknown activation {self.activation!r}; expected one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def nodes(self) -> int:
        """Nodes of one tree."""
        return (1 << (self.depth + 1)) - 1

    @property
    def leaves(self) -> int:
        """Ends of paths of one tree: the two branches of each node of the last level."""
        return 1 << (self.depth + 1)

    @property
    def active_width(self) -> int:
        """Neurons that a token passes through, R + T (D + 1 + L), skipped ones by the part computed."""
        neuron = self.d_in + self.d_out + (self.d_in if self.leaf_gated else 0)
        leaf = math.ceil(self._leaf_macs / neuron)
        return self.trunk + self.trees * (self.depth + 1 + leaf)

    @property
    def _leaf_macs(self) -> int:
        """Multiply-adds of one token in one leaf block: all activations, and what is behind those kept."""
        behind = self.d_out + (self.d_in if self.leaf_gated else 0)
        return round(self.leaf_width * (self.d_in + (1 - self.leaf_sparsity) * behind))

    @property
    def macs_per_token(self) -> int:
        """Multiply-adds of one token, counting one per weight that is multiplied."""
        d = self.d_in + self.d_out
        return self.trunk * d + self.trees * ((self.depth + 1) * d + self._leaf_macs)

    @property
    def parameters(self) -> int:
        """Stored parameters of the layer."""
        branches = 2 if self.branch_outputs else 1
        tree = self.nodes * (self.d_in + 1) + branches * self.nodes * self.d_out
        if self.branch_outputs:
            tree += self.leaves * self.d_out
        gate = self.d_in + 1 if self.leaf_gated else 0
        threshold = 1 if self.leaf_sparsity else 0
        leaf = self.leaves * self.leaf_width * (self.d_in + 1 + self.d_out + gate + threshold)
        return self.trees * (tree + leaf) + self.trunk * (self.d_in + self.d_out) + self.d_out

    def to_dict(self) -> dict[str, Any]:
        """The specification as plain values, as stored in a checkpoint's config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FFFSpec:
        """Read a stored specification.

        Unknown keys are dropped with a warning (a newer release wrote them).

        Raises:
            FFFError: A value is missing, of the wrong type or out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            warnings.warn(f"ignored unknown keys of an FFF layer: {', '.join(unknown)}", stacklevel=2)
        missing = [name for name in ("d_in", "d_out", "depth") if name not in values]
        if missing:
            raise FFFError(f"an FFF layer's specification lacks {', '.join(missing)}")
        return cls(**{name: value for name, value in values.items() if name in known})


def leaf_in_words(width: int, sparsity: float) -> str:
    """Neurons of a leaf block, and the share of them that a token skips, for people."""
    return f"{width} ({sparsity:.0%} skipped)" if sparsity else str(width)


SHAPE = ("depth", "trees", "trunk", "leaf_width", "leaf_sparsity")
"""What a plan says of a block."""


def read_shapes(path: str | Path) -> dict[str, dict[str, float]]:
    """Read the shapes of a plan file: for each block some of `SHAPE`, depth at least.

    Raises:
        FFFError: There is no such file, or it is no plan.
    """
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FFFError(f"plan {path} cannot be read: {first_line(error)}") from error
    blocks = document.get("blocks") if isinstance(document, dict) else None
    if not isinstance(blocks, dict) or not blocks:
        raise FFFError(f"plan {path} has no blocks; expected a file that fffconvert plan wrote")
    for name, values in blocks.items():
        if not isinstance(values, dict) or "depth" not in values:
            raise FFFError(
                f"plan {path}: block {name!r} has no depth; expected depth, and {', '.join(SHAPE[1:])}"
            )
    return {
        str(name): {key: values[key] for key in SHAPE if key in values} for name, values in blocks.items()
    }


class LayerForm(str, Enum):
    """Which form of FFF layer takes a block's place."""

    BRANCH = "branch"
    """An output row for each branch of a node and a constant for each path: the better fit."""
    PAPER = "paper"
    """One output row for each node, as published. Reference: arXiv 2311.10770, section 3."""


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
    if activation not in ACTIVATIONS:
        raise FFFError(
            f"block {block} has an activation that FFF layers lack ({activation}); expected one of "
            f"{', '.join(ACTIVATIONS)}: leave the block out with --exclude"
        )
    return activation


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern matches a name, or some whole parts of it between dots."""
    return any(
        fnmatchcase(f".{name}.", f"{before}.{pattern}.{after}") for before in ("", "*") for after in ("", "*")
    )
