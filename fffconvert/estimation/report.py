"""`estimate`: what fast feedforward layers would bring to a model, counted and put in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fffconvert.errors import FFFError
from fffconvert.estimation import roofline
from fffconvert.estimation.advice import advise
from fffconvert.estimation.anatomy import Part
from fffconvert.estimation.case import Case
from fffconvert.estimation.conversion import Budget, ablated, break_even_tokens, limit
from fffconvert.estimation.machines import BYTES, Hardware, hardware
from fffconvert.estimation.models import anatomy_of, preset
from fffconvert.estimation.workload import Workload
from fffconvert.options import EstimateOptions, verb
from fffconvert.options.estimate import Phase
from fffconvert.planning import FFFSpec

CONTEXTS = (128, 512, 2048, 8192, 32768)
"""Context lengths for which the limit is always given."""
UTILISATION = 0.4
"""Share of the peak that training reaches; 0.3 to 0.5 is usual. Reference: arXiv 2204.02311, section 4.1."""


@dataclass(frozen=True)
class Estimate(Case):
    """What fast feedforward layers would bring to a model.

    Attributes:
        model: Its name.
        source: Where its shape was published, for a model of the list.
        published: Its published number of parameters.
        tokens: Training tokens.
    """

    model: str
    source: str | None
    published: int | None
    tokens: int

    def figures(self) -> dict[str, Any]:
        """The figures that most depend on the layers, as rows of sweeps have them, too."""
        block, spec = self.block, self.spec
        parameters, stored = (sum(a.parameters.values()) for a in (self.anatomy, self.converted))
        return {
            "model": self.model,
            "parameters": parameters,
            "trees": spec.trees,
            "depth": spec.depth,
            "nodes": spec.nodes,
            "neurons_used": spec.active_width,
            "neuron_share": spec.active_width / block.d_hidden,
            "ffn_speedup_vs_block": block.macs / spec.macs_per_token,
            "model_speedup": self.model_speedup,
            "model_speedup_limit": self.model_speedup_limit,
            "storage_growth": stored / parameters,
            "break_even_tokens": break_even_tokens(block, spec),
        }

    def to_dict(self) -> dict[str, Any]:
        """The document that `fffconvert estimate --json` prints."""
        block, spec, anatomy, after = self.block, self.spec, self.anatomy, self.converted
        return {
            **self.figures(),
            "source": self.source,
            "layers": sum(b.calls for b in anatomy.blocks),
            "d_model": block.d_model,
            "d_hidden": block.d_hidden,
            "gated": block.gated,
            "experts": block.experts,
            "trunk": spec.trunk,
            "node_share": spec.active_width / (spec.trees * spec.nodes + spec.trunk),
            "ffn_speedup_vs_tree_size": _tree_size_macs(spec) / spec.macs_per_token,
            "parameters_published": self.published,
            "parameters_by_part": {part.value: total for part, total in anatomy.parameters.items()},
            "converted_parameters": sum(after.parameters.values()),
            "work": {"batch": self.work.batch, "context": self.work.context, "phase": self.work.phase.value},
            "dtype": self.dtype,
            "tokens_per_pass": anatomy.tokens(self.work),
            "macs_per_token": self._per_token(anatomy.macs(self.work)),
            "converted_macs_per_token": self._per_token(after.macs(self.work)),
            "bytes_per_token": self._per_token(roofline.moved_bytes(anatomy, self.work, self.dtype)),
            "converted_bytes_per_token": self._per_token(roofline.moved_bytes(after, self.work, self.dtype)),
            "by_context": [self._context_row(context) for context in self._contexts()],
            "memory_bytes": {
                "weights": roofline.weight_bytes(anatomy, self.dtype),
                "converted_weights": roofline.weight_bytes(after, self.dtype),
                "keys_and_values": roofline.cache_bytes(anatomy, self.work, self.dtype),
            },
            "training": self.training(),
            "roofline": self.roofline(),
            "blocks": self._blocks(),
            "advice": advise(self),
        }

    def roofline(self) -> dict[str, Any] | None:
        """Times of one forward pass on the machine; None if no machine was given."""
        times = self.durations()
        if self.machine is None or times is None:
            return None
        before, after = times
        without = roofline.duration(ablated(self.anatomy), self.work, self.machine, self.dtype)
        return {
            "hardware": self.machine.name,
            "title": self.machine.title,
            "measured": self.machine.rates is not None,
            "source": self.machine.source,
            "latency_ms": before.seconds * 1e3,
            "converted_latency_ms": after.seconds * 1e3,
            "ablated_latency_ms": without.seconds * 1e3,
            "speedup": before.seconds / after.seconds,
            "speedup_limit": before.seconds / without.seconds if without.seconds else float("inf"),
            "bound": before.bound,
            "converted_bound": after.bound,
            "latency_ms_by_part": {part.value: seconds * 1e3 for part, seconds in before.by_part.items()},
            "converted_latency_ms_by_part": {p.value: s * 1e3 for p, s in after.by_part.items()},
        }

    def training(self) -> dict[str, Any]:
        """Floating point operations of training on `tokens`, and GPU hours on the machine if it is a GPU.

        From scratch, and by distillation with the original as teacher; forward and backward pass count three
        forward passes. Reference: arXiv 2001.08361, section 2.1.
        """
        work = Workload(1, self.work.context, Phase.PREFILL, self.work.generates)
        per_token = [
            2 * sum(anatomy.macs(work).values()) / anatomy.tokens(work)
            for anatomy in (self.anatomy, self.converted)
        ]
        dense, student = (3 * self.tokens * flops for flops in per_token)
        distilled = student + self.tokens * per_token[0]
        found: dict[str, Any] = {
            "tokens": self.tokens,
            "dense_flops": dense,
            "converted_flops": student,
            "distillation_flops": distilled,
        }
        if self.machine is not None and self.machine.kind == "gpu":
            rate = UTILISATION * self.machine.peak(self.dtype) * 3600
            found["utilisation"] = UTILISATION
            found |= {
                f"{name}_gpu_hours": flops / rate
                for name, flops in (("dense", dense), ("converted", student), ("distillation", distilled))
            }
        return found

    def _contexts(self) -> list[int]:
        grows = any(
            o.key is not None or o.rows.stream.value.endswith("token") for o in self.anatomy.operations
        )
        return sorted({*CONTEXTS, self.work.context}) if grows else [self.work.context]

    def _context_row(self, context: int) -> dict[str, Any]:
        work = self.at_context(context)
        macs, after = (sum(a.macs(work).values()) for a in (self.anatomy, self.converted))
        row = {
            "context": context,
            "feedforward_share": self.anatomy.macs(work)[Part.FEEDFORWARD] / macs,
            "model_speedup": macs / after,
            "model_speedup_limit": limit(self.anatomy, work),
        }
        if times := self.durations(work):
            row["roofline_speedup"] = times[0].seconds / times[1].seconds
        return row

    def _per_token(self, totals: Mapping[Part, float]) -> dict[str, float]:
        tokens = self.anatomy.tokens(self.work)
        named = {part.value: _whole(total / tokens) for part, total in totals.items()}
        return {**named, "total": _whole(sum(totals.values()) / tokens)}

    def _blocks(self) -> list[dict[str, Any]]:
        rows = Counter(
            (b.d_model, b.d_hidden, b.gated, b.experts, b.calls, s.trees, s.depth)
            for b, s in zip(self.anatomy.blocks, self.specs, strict=True)
        )
        keys = ("d_model", "d_hidden", "gated", "experts", "calls", "trees", "depth")
        return [{"count": count, **dict(zip(keys, row, strict=True))} for row, count in rows.items()]


@verb(EstimateOptions)
def estimate(model: str | nn.Module, options: EstimateOptions) -> Estimate:
    """Estimate what fast feedforward layers would bring to a model, without its weights.

    Args:
        model: A name such as "gpt3-175b", a hub id, a folder, a config.json, a GGUF file, `pkg:DIST[/PATH]`,
            or a module.

    Raises:
        FFFError: There is no such model or machine, or a number is out of range.
    """
    budget = Budget(options.depth, options.trees, options.trunk, options.active_fraction, options.layer)
    work = Workload(options.batch, options.context)  # checks the numbers first
    if options.dtype not in BYTES:
        raise FFFError(f"`dtype` is {options.dtype!r}; expected one of {', '.join(BYTES)}")
    where = machine(options.hardware)
    anatomy = anatomy_of(
        model,
        example_inputs=options.example_inputs,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )
    name = model if isinstance(model, str) else type(model).__name__
    known = preset(model, options.revision) if isinstance(model, str) else None
    return Estimate(
        anatomy,
        tuple(budget.spec(block) for block in anatomy.blocks),
        Workload(work.batch, work.context, options.phase, anatomy.generates),
        options.dtype,
        where,
        name,
        known.source if known else None,
        known.parameters if known else None,
        options.train_tokens,
    )


def machine(given: str | Hardware | None) -> Hardware | None:
    """A machine by name; "this" measures the one at hand.

    Raises:
        FFFError: There is no such machine or file.
    """
    if given is None or isinstance(given, Hardware):
        return given
    if given.lower() == "this":
        from fffconvert.estimation.measure import this_machine

        return this_machine()
    return hardware(given)


def _tree_size_macs(spec: FFFSpec) -> int:
    """Multiply-adds of a dense block of all the layer's neurons."""
    width = spec.d_in + spec.d_out
    leaf = spec.leaf_width * (width + (spec.d_in if spec.leaf_gated else 0))
    return spec.trunk * width + spec.trees * (spec.nodes * width + spec.leaves * leaf)


def _whole(number: float) -> float:
    """A whole number where it is one."""
    return int(number) if number == int(number) else number
