"""What `fffconvert inspect` reports of a model, from its config alone."""

from __future__ import annotations

from typing import Any

from fffconvert import hub
from fffconvert.errors import FFFError
from fffconvert.location import locate
from fffconvert.location.inputs import example_inputs
from fffconvert.planning import FFFSpec
from fffconvert.records import read
from fffconvert.surgery import verify


def inspect_model(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    min_expansion: float = 1.0,
) -> dict[str, Any]:
    """Find the feedforward blocks of a model, and the FFF layers of a converted one.

    The model is built with random weights, so that a config is enough and large weights stay where they are.

    Args:
        name: Hub id, folder, GGUF file or `pkg:DIST[/PATH]`.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run the code that the repository brings along.
        min_expansion: Least ratio of d_hidden to d_model.

    Returns:
        `model`, `blocks`, `skipped` and `layers`, as `fffconvert inspect --json` prints them.

    Raises:
        FFFError: There is no such model, or it has nothing like a feedforward block.
    """
    model = hub.load_random(name, revision=revision, trust_remote_code=trust_remote_code).model
    layers = _layers(getattr(model.config, "quantization_config", None))
    inputs = example_inputs(model)
    sites = verify(model, locate(model, inputs, min_expansion=min_expansion), inputs)
    converted = {layer["name"] for layer in layers}
    blocks = [site.to_dict() for site in sites if site.name not in converted]
    if not (blocks or layers or sites.skipped):
        raise FFFError(
            f"{name} has no feedforward block: no linear, activation, linear beside a residual stream"
        )
    return {
        "model": name,
        "blocks": blocks,
        "skipped": [{"name": skip.name, "reason": skip.reason} for skip in sites.skipped],
        "layers": layers,
    }


def _layers(stored: dict[str, Any] | None) -> list[dict[str, Any]]:
    if stored is None:
        return []
    specs = {
        name: read(FFFSpec, values["spec"], f"the FFF layer of block {name!r}", "checkpoint")
        for name, values in hub.FFFConfig.from_dict(stored).modules.items()
    }
    return [{"name": name, **spec.stated()} for name, spec in specs.items()]
