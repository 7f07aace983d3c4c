"""Convert a model: locate, plan, fit on what each block really sees, put the layers in."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from fffconvert import hub, surgery
from fffconvert.errors import FFFError
from fffconvert.fit import fit_layer
from fffconvert.fit.calibrate import Batch, calibration_of
from fffconvert.fit.corpus import names_of_texts, read_texts
from fffconvert.fit.diagnostics import Diagnostics, diagnose, outputs
from fffconvert.fit.fitted import Fitted
from fffconvert.fit.neurons import neurons_of
from fffconvert.fit.refine import Pair, refine_layer, split_off
from fffconvert.fit.stream import ActivationStream
from fffconvert.hub.metrics import BlockResult, Metrics
from fffconvert.location import FFNSite, Sites, locate
from fffconvert.location.inputs import inputs_for
from fffconvert.options import ConvertOptions, verb
from fffconvert.options.common import Calibrated
from fffconvert.planning import FFFSpec
from fffconvert.planning.selection import select, specs_for
from fffconvert.store import digest
from fffconvert.tree import FFFLayer

Model = TypeVar("Model", bound=nn.Module)


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
class Conversion:
    """What `convert_model` did.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer, if it has one.
        results: What became of each block, or would, for a dry run.
        output: The folder; None for a model that was not written.
        seconds: Time taken, without the start of Python.
    """

    model: Any
    tokenizer: Any
    results: tuple[BlockResult, ...]
    output: Path | None
    seconds: float


@verb(ConvertOptions)
def convert(model: Model | str, options: ConvertOptions) -> Model:
    """Replace a model's feedforward blocks by fitted FFF layers.

    Args:
        model: Any module, which is changed in place and stays of its class; or the name of a model: a hub
            id, a folder, a GGUF file, or `pkg:DIST[/PATH]`.

    Returns:
        The model.

    Raises:
        FFFError: There is nothing to convert, or an option is out of range; nothing is changed or written.
    """
    found: Model = convert_model(model, options).model
    return found


def convert_model(model: nn.Module | str, options: ConvertOptions, *, dry_run: bool = False) -> Conversion:
    """Convert a model, and say what became of each block: what `convert` does.

    Args:
        model: As for `convert`.
        options: How.
        dry_run: Stop before anything is fitted.

    Raises:
        FFFError: Bad input; nothing was changed or written.
    """
    started = time.monotonic()
    if options.output is not None:
        hub.check_output(options.output, overwrite=options.overwrite)
        if not isinstance(model, str | PreTrainedModel):
            raise FFFError(
                f"{type(model).__name__} is no transformers model; leave out `output`, and save its state"
            )
    own: Any = model
    tokenizer, folder, complete = options.tokenizer, None, options
    if isinstance(model, str):
        given, columns = options.calibration, options.text_columns
        text = None if given is None else read_texts(given, columns, options.lines)  # before the model
        loaded = hub.load(model, revision=options.revision, trust_remote_code=options.trust_remote_code)
        own, tokenizer, folder = loaded.model, tokenizer or loaded.tokenizer, loaded.source.folder
        complete = options.replace(calibration=text, tokenizer=tokenizer)
    prepared = prepare(own, complete)
    if dry_run:
        planned = tuple(_result(site, prepared.specs[site.name]) for site in prepared.sites)
        return Conversion(own, tokenizer, planned, options.output, 0.0)
    if isinstance(model, str):
        fitted = Fitted(digest(options.to_dict(), prepared.specs, own, prepared.batches))
        results = fit_blocks(own, prepared, fitted, keep_originals=False)
        own.config.quantization_config.base_model = model
    else:
        fitted = None
        results = fit_blocks(own, prepared, keep_originals=options.keep_originals)
    del prepared  # it holds the original blocks, which need not be in memory while the model is written
    seconds = time.monotonic() - started
    if options.output is not None:
        texts = names_of_texts(options.calibration)
        made = {"model": own.config.quantization_config.base_model, "revision": options.revision}
        hub.save(
            own,
            tokenizer,
            options.output,
            recipe={**made, "calibration": texts, **options.to_dict()},
            metrics=Metrics(tuple(results), round(seconds, 1)),
            overwrite=options.overwrite,
            original=folder,
        )
    if fitted is not None:
        fitted.clear()
    return Conversion(own, tokenizer, tuple(results), options.output, seconds)


def prepare(model: nn.Module, options: ConvertOptions) -> Prepared:
    """Find what to convert and check all that can be checked; the model is left as it is.

    Args:
        model: The model.
        options: How it is to be converted.

    Raises:
        FFFError: There is nothing to convert, or no calibration text fits the model.
    """
    _check_present(model)
    inputs = inputs_for(model, options.example_inputs)
    sites = options.sites or locate(model, inputs, min_expansion=options.min_expansion)
    names = [name for name, _ in model.named_modules()]
    wanted = options.shapes
    unknown = sorted(set(wanted) - {site.name for site in sites})
    if unknown:
        raise FFFError(f"the plan names block {unknown[0]!r}, which the model lacks; see fffconvert inspect")
    if wanted:
        sites = Sites([site for site in sites if site.name in wanted], sites.skipped)
    sites = select(sites, names, options.include, options.exclude)
    sites = surgery.verify(model, sites, inputs)
    if not sites:
        raise FFFError(
            f"no block of the model can be replaced: {sites.skipped[-1].reason}; see fffconvert inspect"
        )
    specs = specs_for(sites, options)
    for site in sites:
        if specs[site.name].leaf_width:
            neurons_of(site)  # says so now if there are none to take over
    text = calibration_of(
        model,
        options.calibration,
        options.tokenizer,
        tokens=options.tokens,
        length=options.length,
        seed=options.seed,
        columns=options.text_columns,
        lines=options.lines,
    )
    batches = (*text.held_out, *text.fitted)
    return Prepared(sites, specs, batches, len(text.held_out), options.sequential, options.refine)


def blocks_and_text(model: nn.Module | str, options: Calibrated) -> tuple[nn.Module, Prepared]:
    """A model, read if it is given by name, and its blocks and text, before any layer is chosen.

    Raises:
        FFFError: As `prepare`, or the model cannot be read.
    """
    own, tokenizer = model, options.tokenizer
    if isinstance(own, str):
        loaded = hub.load(own, revision=options.revision, trust_remote_code=options.trust_remote_code)
        own, tokenizer = loaded.model, tokenizer or loaded.tokenizer
    shared = {field.name: getattr(options, field.name) for field in dataclasses.fields(Calibrated)}
    return own, prepare(own, ConvertOptions(**{**shared, "tokenizer": tokenizer}, depth=1))


class Activations(NamedTuple):
    """What one block of a model is given on text, and what it makes of it.

    Attributes:
        site: The block.
        held_out: Its inputs and outputs, both [tokens, d_model], on the text that no layer is fitted on.
        fitted: The same on the other text.
    """

    site: FFNSite
    held_out: Pair
    fitted: Pair


@verb(Calibrated)
def activations(model: nn.Module | str, options: Calibrated) -> Iterator[Activations]:
    """Run a model over text, and give the inputs and outputs of its blocks, one block after the other.

    What is put in a block's place (`replace`) before the next block is asked for counts from there on: so
    one can convert a model by other means.

    Args:
        model: Any module, which is left as it is, or the name of a model.

    Returns:
        For each block `site`, and `held_out` and `fitted`: its inputs and outputs, [tokens, d_model] each.

    Raises:
        FFFError: What `convert` refuses.
    """
    own, prepared = blocks_and_text(model, options)
    stream = ActivationStream(own, prepared.sites, prepared.batches)
    return (activations_at(stream, site, prepared.held_out) for site in prepared.sites)


def activations_at(stream: ActivationStream, site: FFNSite, held_out: int) -> Activations:
    """What a block is given and makes of it, the first `held_out` batches apart."""
    inputs = stream.inputs(site)
    parts = torch.cat(inputs[:held_out]), torch.cat(inputs[held_out:])
    del inputs
    block = site.dense().to("cpu", torch.float32)
    held, fitted = ((x, outputs(block, x)) for x in parts)
    return Activations(site, held, fitted)


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
    model: nn.Module, prepared: Prepared, fitted: Fitted | None = None, *, keep_originals: bool = True
) -> list[BlockResult]:
    """Fit and replace block after block, each on the inputs it gets from the converted ones before it.

    The target of a block is what the original block makes of those inputs. If anything fails, the model gets
    its original blocks back. Layers that were fitted before are not fitted again.
    """
    stream = ActivationStream(model, prepared.sites, prepared.batches)
    results, later = [], {}
    with surgery.undone_on_error(model):
        for site in tqdm(prepared.sites, desc="fit", unit="block", disable=None):
            spec = prepared.specs[site.name]
            earlier = None if fitted is None else fitted.load(site.name, spec)
            layer, found = earlier or _fit(activations_at(stream, site, prepared.held_out), prepared)
            layer.spec = spec
            if fitted is not None and earlier is None:
                fitted.save(site.name, layer, found)
            results.append(_result(site, spec, found))
            later[site] = layer
            if prepared.sequential:
                surgery.replace(model, {site: later.pop(site)})
        surgery.replace(model, later)
    if not keep_originals:
        surgery.drop_originals(model)
    if isinstance(model, PreTrainedModel):
        hub.mark_converted(model, model.config.name_or_path or None)
        # It is not what this name stands for any more: an adapter saved from it must not be put on that.
        model.name_or_path = model.config.name_or_path = ""
    return results


def _fit(found: Activations, prepared: Prepared) -> tuple[FFFLayer, Diagnostics]:
    """Fit one block on all text but that held out, on which it is measured."""
    spec = replace(prepared.specs[found.site.name], feature_axis=-1)
    neurons = neurons_of(found.site) if spec.leaf_width else None
    if prepared.refine:
        own, held = split_off(*found.fitted)
        layer = fit_layer(*own, spec, neurons)
        refine_layer(layer, own, held, passes=prepared.refine)
    else:
        layer = fit_layer(*found.fitted, spec, neurons)
    return layer, diagnose(layer, *found.held_out)


def restore(model: nn.Module) -> None:
    """Put a converted model's original blocks back.

    Raises:
        FFFError: The model holds no originals: it was not converted in this process, or is a copy.
    """
    surgery.restore(model)
    if isinstance(model, PreTrainedModel):
        hub.mark_converted(model)


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
