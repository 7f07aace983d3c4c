"""Convert a model: locate, plan, fit on what each block really sees, put the layers in."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from fffconvert import hub, surgery
from fffconvert.errors import FFFError
from fffconvert.fit import fit_layer, read_corpus
from fffconvert.fit.calibrate import Batch, Calibration, calibration_of
from fffconvert.fit.diagnostics import Diagnostics, diagnose, outputs
from fffconvert.fit.kept import KeptLayers
from fffconvert.fit.neurons import neurons_of
from fffconvert.fit.refine import refine_layer, split_off
from fffconvert.fit.stream import ActivationStream
from fffconvert.hub.metrics import BlockResult, Metrics
from fffconvert.location import FFNSite, Sites, locate
from fffconvert.location.inputs import Inputs, inputs_for
from fffconvert.planning import FFFSpec, LayerForm
from fffconvert.planning.selection import plan, select
from fffconvert.recipe import Recipe
from fffconvert.store import digest
from fffconvert.tree import FFFLayer

Model = TypeVar("Model", bound=nn.Module)

CHUNK = 8192
"""Tokens per step when a block or layer is evaluated on the calibration activations."""


@dataclass(frozen=True)
class Prepared:
    """Blocks that can be replaced, what each becomes, and the text and the way to fit them.

    No layer is fitted on the first `held_out` batches.
    """

    sites: Sites
    specs: dict[str, FFFSpec]
    batches: tuple[Batch, ...]
    held_out: int
    sequential: bool = True
    refine: int = 0


@dataclass(frozen=True)
class ConvertedModel:
    """What `convert_model` did.

    Attributes:
        results: What became of each block, or would, for a dry run.
        output: The folder.
        seconds: Time taken, without the start of Python.
    """

    results: tuple[BlockResult, ...]
    output: Path
    seconds: float


def convert(
    model: Model,
    *,
    depth: int,
    trees: int = 1,
    trunk: int = 0,
    leaf_width: int = 0,
    layer: LayerForm | str = LayerForm.BRANCH,
    calibration: Iterable[Any] | None = None,
    tokenizer: Any = None,
    example_inputs: Inputs | None = None,
    keep_originals: bool = True,
    **options: Any,
) -> Model:
    """Replace a model's feedforward blocks by fitted FFF layers, in place.

    Args:
        model: Any module; stays of its class.
        depth: Depth of each tree.
        trees: Number of trees.
        trunk: Rank of the always-active linear map; 0 for none.
        leaf_width: Neurons of the dense block at each end of a path, of the original's; 0 for none.
        layer: "branch" or "paper".
        calibration: Texts or rows of data (with `tokenizer`), or what forward passes take, each a tensor, a
            tuple or a mapping of tensors; tokens that `attention_mask` says are padding do not count. English
            text that comes with Python by default. An eighth is held out: whole texts, or the first batches.
        tokenizer: The model's tokenizer.
        example_inputs: What one forward pass takes, where it cannot be guessed: a tensor, a tuple or a
            mapping.
        keep_originals: Keep the original blocks in memory as long as the model is, so that
            `fffconvert.restore(model)` can put them back.
        **options: Further fields of `Recipe`: leaf_sparsity, include, exclude, tokens, sequential, refine,
            text_columns, shapes and more.

    Returns:
        The model.

    Raises:
        FFFError: There is nothing to convert, or a number is out of range; the model is unchanged.
    """
    recipe = Recipe(depth, trees, trunk, leaf_width, layer=LayerForm(layer), **options)
    prepared = prepare(model, recipe, calibration, tokenizer, example_inputs)
    fit_blocks(model, prepared, keep_originals=keep_originals)
    return model


def prepare(
    model: nn.Module,
    recipe: Recipe,
    calibration: Iterable[Any] | Calibration | None = None,
    tokenizer: Any = None,
    example_inputs: Inputs | None = None,
) -> Prepared:
    """Find what to convert and check all that can be checked; the model is left as it is.

    Raises:
        FFFError: There is nothing to convert, or no calibration text fits the model.
    """
    _check_present(model)
    inputs = inputs_for(model, example_inputs)
    sites = locate(model, inputs, min_expansion=recipe.min_expansion)
    names = [name for name, _ in model.named_modules()]
    unknown = sorted(set(recipe.shapes) - {site.name for site in sites})
    if unknown:
        raise FFFError(f"the plan names block {unknown[0]!r}, which the model lacks; see fffconvert inspect")
    if recipe.shapes:
        sites = Sites([site for site in sites if site.name in recipe.shapes], sites.skipped)
    sites = select(sites, names, recipe.include, recipe.exclude)
    sites = surgery.verify(model, sites, inputs)
    if not sites:
        raise FFFError(
            f"no block of the model can be replaced: {sites.skipped[-1].reason}; see fffconvert inspect"
        )
    specs = plan(
        sites,
        depth=recipe.depth,
        trees=recipe.trees,
        trunk=recipe.trunk,
        leaf_width=recipe.leaf_width,
        leaf_sparsity=recipe.leaf_sparsity,
        form=recipe.layer,
        shapes=recipe.shapes,
    )
    for site in sites:
        if specs[site.name].leaf_width:
            neurons_of(site)  # says so now if there are none to take over
    options = {"tokens": recipe.tokens, "length": recipe.length, "seed": recipe.seed}
    text = calibration_of(model, calibration, tokenizer, columns=recipe.text_columns, **options)
    batches = (*text.held_out, *text.fitted)
    return Prepared(sites, specs, batches, len(text.held_out), recipe.sequential, recipe.refine)


def _check_present(model: nn.Module) -> None:
    """Refuse a model whose weights are elsewhere: there is nothing to fit to."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise FFFError(
                f"weight {name} is not in memory (device meta): the model is offloaded by accelerate, or was "
                "never loaded. Load it without offloading (no device_map to cpu or disk), or first take the "
                "hooks off: accelerate.hooks.remove_hook_from_submodules(model)"
            )


@torch.inference_mode(False)  # parameters made in inference mode could never be trained
def fit_blocks(
    model: nn.Module, prepared: Prepared, kept: KeptLayers | None = None, *, keep_originals: bool = True
) -> list[BlockResult]:
    """Fit and replace block after block, each on the inputs it gets from the converted ones before it.

    The target of a block is what the original block makes of those inputs. If anything fails, the model gets
    its original blocks back. Layers that are kept already are not fitted again.
    """
    stream = ActivationStream(model, prepared.sites, prepared.batches)
    results, later = [], {}
    with surgery.undone_on_error(model):
        for site in tqdm(prepared.sites, desc="fit", unit="block", disable=None):
            spec = prepared.specs[site.name]
            earlier = None if kept is None else kept.load(site.name, spec)
            layer, found = earlier or _fit(stream, site, prepared)
            layer.spec = spec
            if kept is not None and earlier is None:
                kept.save(site.name, layer, found)
            results.append(_result(site, spec, found))
            later[site] = layer
            if prepared.sequential:
                surgery.replace(model, {site: later.pop(site)})
        surgery.replace(model, later)
    if not keep_originals:
        surgery.drop_originals(model)
    if isinstance(model, PreTrainedModel):
        hub.mark_converted(model, model.config._name_or_path or None)
        # It is not what this name stands for any more: an adapter saved from it must not be put on that.
        model.name_or_path = model.config._name_or_path = ""
    return results


def _fit(stream: ActivationStream, site: FFNSite, prepared: Prepared) -> tuple[FFFLayer, Diagnostics]:
    """Fit one block on all batches but those held out, on which it is measured."""
    spec = replace(prepared.specs[site.name], feature_axis=-1)
    inputs = stream.inputs(site)
    test, train = torch.cat(inputs[: prepared.held_out]), torch.cat(inputs[prepared.held_out :])
    del inputs
    block = site.dense().to("cpu", torch.float32)
    y = outputs(block, train)
    neurons = neurons_of(site) if spec.leaf_width else None
    if prepared.refine:
        own, held = split_off(train, y)
        layer = fit_layer(*own, spec, neurons)
        refine_layer(layer, own, held, passes=prepared.refine)
    else:
        layer = fit_layer(train, y, spec, neurons)
    return layer, diagnose(layer, test, outputs(block, test))


def restore(model: nn.Module) -> None:
    """Put a converted model's original blocks back.

    Raises:
        FFFError: The model holds no originals: it was not converted in this process, or is a copy.
    """
    surgery.restore(model)
    if isinstance(model, PreTrainedModel):
        hub.mark_converted(model)


def convert_model(
    name: str,
    recipe: Recipe,
    output: str | Path,
    *,
    calibration: Sequence[str] = (),
    revision: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> ConvertedModel:
    """Convert a model given by name and save it: the command `fffconvert convert`.

    Args:
        name: Hub id, folder, GGUF file or `pkg:DIST[/PATH]`.
        recipe: How to convert it.
        output: Folder to write; written atomically.
        calibration: Text files or names of `datasets`; English text that comes with Python by default.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run the code that the repository brings along.
        overwrite: Replace an existing output folder once the new one is complete.
        dry_run: Stop before anything is fitted.

    Raises:
        FFFError: Bad input; nothing was written.
    """
    started = time.monotonic()
    hub.check_output(output, overwrite=overwrite)
    texts = read_corpus(calibration, recipe.text_columns) if calibration else None
    loaded = hub.load(name, revision=revision, trust_remote_code=trust_remote_code)
    prepared = prepare(loaded.model, recipe, texts, loaded.tokenizer)
    if dry_run:
        planned = tuple(_result(site, prepared.specs[site.name]) for site in prepared.sites)
        return ConvertedModel(planned, Path(output), 0.0)
    document = {"model": name, "revision": revision, "calibration": list(calibration), **recipe.to_dict()}
    path = Path(output).expanduser().resolve()
    key = digest(recipe.to_dict(), prepared.specs, loaded.model, prepared.batches)
    kept = KeptLayers(path.with_name(f".{path.name}.fitted"), key)
    results = fit_blocks(loaded.model, prepared, kept, keep_originals=False)
    del prepared  # it holds the original blocks, which need not be in memory while the model is written
    loaded.model.config.quantization_config.base_model = name
    seconds = time.monotonic() - started
    hub.save(
        loaded.model,
        loaded.tokenizer,
        output,
        recipe=document,
        metrics=Metrics(tuple(results), round(seconds, 1)),
        overwrite=overwrite,
        original=loaded.source.folder,
    )
    kept.clear()
    return ConvertedModel(tuple(results), Path(output), seconds)


def _result(site: FFNSite, spec: FFFSpec, found: Diagnostics | None = None) -> BlockResult:
    dense_macs = sum(projection.weight.numel() for projection in (*site.up, site.down))
    return BlockResult(
        name=site.name,
        **spec.stated(),
        active_fraction=spec.macs_per_token / dense_macs,
        **({} if found is None else vars(found)),
        parameters_before=site.parameters,
        macs_share=site.macs_share,
    )
