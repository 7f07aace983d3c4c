"""Options as signatures: every verb takes all of its dataclass by name, documented, and nothing else."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fffconvert as fff
from fffconvert import options
from fffconvert.errors import FFFError
from fffconvert.options import (
    BenchLayerOptions,
    BenchOptions,
    ConvertOptions,
    DeployOptions,
    DistillOptions,
    EstimateOptions,
    EvaluateOptions,
    ExportOptions,
    PlanOptions,
    ReportOptions,
    SweepOptions,
)
from fffconvert.options.fields import descriptions, fields_of, option, values_of, verb
from fffconvert.planning import LayerForm, Plan

VERBS: dict[str, Any] = {
    "bench": BenchOptions,
    "bench_layer": BenchLayerOptions,
    "convert": ConvertOptions,
    "deploy": DeployOptions,
    "distill": DistillOptions,
    "estimate": EstimateOptions,
    "evaluate": EvaluateOptions,
    "export": ExportOptions,
    "plan": PlanOptions,
    "report": ReportOptions,
    "sweep": SweepOptions,
}


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_has_the_signature_and_the_words_of_its_options(name: str):
    function, own = getattr(fff, name), VERBS[name]
    parameters = inspect.signature(function).parameters
    fields = {field.name: field for field in dataclasses.fields(own)}
    assert fields.keys() == {n for n in parameters if n in fields}
    assert len(parameters) - len(fields) == (0 if name == "bench_layer" else 1)
    for field in fields.values():
        default = parameters[field.name].default
        missing = field.default is dataclasses.MISSING
        assert default is inspect.Parameter.empty if missing else default == field.default
        assert f"    {field.name}: {descriptions(own)[field.name]}" in function.__doc__
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def test_every_options_class_is_a_verbs():
    classes = {getattr(options, name) for name in options.__all__ if name.endswith("Options")}
    assert classes == set(VERBS.values())


def test_an_option_that_is_none_names_the_verb():
    with pytest.raises(TypeError, match=r"convert\(\) got an unexpected keyword argument 'dept'"):
        fff.convert(None, dept=3)
    with pytest.raises(TypeError, match=r"export\(\) missing a required argument: 'output'"):
        fff.export("folder")


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Shared.

    Attributes:
        late: Comes from elsewhere,
            in two lines.
    """

    late: int = 1


@dataclass(frozen=True, kw_only=True)
class Own(Shared):
    """Own.

    Attributes:
        first: The first.
        second: The second, with `first`.
    """

    first: int = 0
    second: str = option("x", flag="--other")


def test_own_options_come_before_shared_ones():
    assert [field.name for field in fields_of(Own)] == ["first", "second", "late"]
    assert descriptions(Own)["late"] == "Comes from elsewhere, in two lines."
    assert values_of(Own(first=3)) == {"late": 1, "first": 3, "second": "x"}


def test_a_function_gets_its_options_checked_and_whole():
    @verb(Own)
    def run(thing: str, own: Own) -> tuple[str, Own]:
        """Run.

        Args:
            thing: What is run.

        Returns:
            Both.
        """
        return thing, own

    assert run("a", second="b") == ("a", Own(second="b"))
    assert run.__doc__ is not None
    words = ["thing: What", "first: The", "second: The", "late: Comes", "Returns:"]
    places = [run.__doc__.index(text) for text in words]
    assert places == sorted(places)


def test_conversions_go_through_yaml():
    given = ConvertOptions(depth=3, trees=2, include=("layer.0",), layer="paper", output=Path("out"))
    stored = given.to_dict()
    assert "output" not in stored
    assert stored["layer"] == "paper"
    again = ConvertOptions.from_dict(stored)
    assert again == given.replace(output=None)
    planned = ConvertOptions(plan=Plan.of_shapes({"a": {"depth": 1, "leaf_width": 4}}))
    assert ConvertOptions.from_dict(planned.to_dict()).shapes == planned.shapes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of `depth` and `plan`; found neither"),
        ({"depth": 1, "specs": {}}, "found `depth` and `specs`"),
        ({"plan": Plan.of_shapes({"a": {"depth": 1}}), "trees": 2}, "`trees` is given beside a plan"),
        ({"depth": 1, "tokens": 3}, "`tokens` is 3; expected at least 256"),
        ({"depth": 1, "leaf_width": 2, "layer": LayerForm.PAPER}, "`leaf_width=0`, or `layer=branch`"),
        ({"depth": 1, "refine": -1}, "`refine` is -1"),
    ],
)
def test_conversions_that_cannot_be_meant_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(FFFError, match=message):
        ConvertOptions(**values)
