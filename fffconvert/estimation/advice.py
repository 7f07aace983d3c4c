"""The estimate in plain words: what limits the model, which trees suffice, when it is not worth it."""

from __future__ import annotations

import dataclasses

from fffconvert.estimation import roofline
from fffconvert.estimation.anatomy import Part
from fffconvert.estimation.case import Case
from fffconvert.estimation.conversion import ablated, break_even_tokens, converted, limit
from fffconvert.options.estimate import Phase
from fffconvert.planning import MAX_TREES

ENOUGH = 0.9
"""Share of the possible gain that is called enough."""
POOR = 1.2
"""A limit below which a conversion is hardly worth its loss of quality."""
WORDS = {
    Part.EMBEDDINGS: "the embeddings",
    Part.PROJECTIONS: "the attention's projections",
    Part.CONTEXT: "attention over the context",
    Part.FEEDFORWARD: "the trees",
    Part.HEAD: "the head",
    Part.OTHER: "what is neither attention nor feedforward",
}


def advise(case: Case) -> list[str]:
    """Sentences about a case, the most important first."""
    return [*_limits(case), *_enough(case), *_warnings(case)]


def most_trees(case: Case) -> int | None:
    """The most trees of that depth that keep `ENOUGH` of the possible gain; None if one is too many."""
    wanted = 1 + ENOUGH * (case.model_speedup_limit - 1)
    whole = sum(case.anatomy.macs(case.work).values())

    def suffices(trees: int) -> bool:
        specs = [dataclasses.replace(spec, trees=trees) for spec in case.specs]
        return whole / sum(converted(case.anatomy, specs).macs(case.work).values()) >= wanted

    if not suffices(1):
        return None
    low, high = 1, MAX_TREES
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if suffices(middle) else (low, middle - 1)
    return low


def _limits(case: Case) -> list[str]:
    work = case.work
    dense = case.anatomy.macs(work)
    share = dense[Part.FEEDFORWARD] / sum(dense.values())
    rest = ablated(case.anatomy).macs(work)
    largest = max(rest, key=lambda part: rest[part])
    said = [
        f"{share:.0%} of the multiply-adds are feedforward at a context of {work.context:,}: even if "
        "the blocks "
        f"cost nothing, the model would be at most {case.model_speedup_limit:.2f}x faster. After that, "
        f"{WORDS[largest]} ({rest[largest] / max(1, sum(rest.values())):.0%} of the rest) decide."
    ]
    longer = limit(case.anatomy, case.at_context(8 * work.context))
    if longer < 0.9 * case.model_speedup_limit:
        said.append(f"The longer the context, the less: the limit at {8 * work.context:,} is {longer:.2f}x.")
    return said


def _enough(case: Case) -> list[str]:
    spec, block, trees = case.spec, case.block, most_trees(case)
    if trees is None:
        return [
            f"One tree of depth {spec.depth} is {spec.active_width} of {block.d_hidden:,} neurons and "
            "leaves less "
            f"than {ENOUGH:.0%} of the possible gain: the blocks are too narrow for trees of this depth."
        ]
    width = dataclasses.replace(spec, trees=trees).active_width
    return [
        f"Up to {trees} trees of depth {spec.depth} ({width:,} of {block.d_hidden:,} neurons) keep "
        f"{ENOUGH:.0%} of "
        f"the possible gain; fewer save next to nothing more, so spend the budget on quality."
    ]


def _warnings(case: Case) -> list[str]:
    said = []
    work, block, spec = case.work, case.block, case.spec
    if case.model_speedup_limit < POOR:
        said.append(
            f"Not worth it at this context: what can be gained is under {POOR - 1:.0%}, and quality "
            "will drop."
        )
    if block.experts:
        said.append(
            "The feedforward blocks are experts behind a router, which fffconvert leaves alone; the "
            "figures say "
            "what a tree in the place of each layer's experts would bring over the experts that a "
            "token meets."
        )
    tokens = block.rows.at(work)
    even = break_even_tokens(block, spec)
    if even is not None and tokens >= even:
        said.append(
            f"A pass of {tokens:,} tokens meets so many different nodes that their rows are as many "
            "bytes as the "
            f"dense block (from {even:,} tokens on): memory traffic is no longer saved, only multiply-adds."
        )
    weights = roofline.weight_bytes(case.converted, case.dtype)
    machine = case.machine
    if machine is not None and weights > machine.memory_bytes:
        said.append(
            f"The converted weights take {weights / 1e9:,.1f} GB, more than the "
            f"{machine.memory_bytes / 1e9:,.0f} GB "
            f"of one {machine.title}."
        )
    if machine is not None and (times := case.durations()):
        before, after = times
        if before.seconds / after.seconds < POOR:
            said.append(
                f"On {machine.title} the expected gain is {before.seconds / after.seconds:.2f}x: the "
                "original is "
                f"bound by {before.bound}, the converted model by {after.bound}."
            )
    if work.phase is Phase.TRAIN:
        said.append("Training counts the nodes of the paths taken; the optimiser still updates all of them.")
    return said
