"""Records are the same after JSON and YAML, and whatever else a file holds is refused in one line."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fffconvert.benchmarks.model.rows import ModelBenchmark
from fffconvert.distillation.recipe import Data, Objectives, Routing, Stage, Trained
from fffconvert.distillation.recipe import Recipe as Distillation
from fffconvert.errors import FFFError
from fffconvert.estimation.machines import Hardware, known_machines
from fffconvert.estimation.models import Preset
from fffconvert.evaluation import routing
from fffconvert.evaluation.grid import SweepResult
from fffconvert.evaluation.results import Evaluation
from fffconvert.hub.deployment import Deployment
from fffconvert.hub.metrics import Metrics, Step
from fffconvert.hub.saved_plan import SavedLayer
from fffconvert.location import Placement, Position
from fffconvert.planning import FFFSpec
from fffconvert.planning.file import Plan, PlannedBlock
from fffconvert.records import plain, read

DOCUMENTS = (Metrics, Step, Evaluation, routing.Routing, ModelBenchmark, SweepResult)
PARTS = (Data, Objectives, Routing, Trained, Stage, PlannedBlock, Preset)
ANY = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=3))
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-(2**60), 2**60),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=5),
    Path: st.text("abc/.", min_size=1, max_size=5).map(Path),
    Any: ANY,
}


def values(hint: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Whatever a field may hold; records within records of their own kind are not nested for ever."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(st.none(), values(inner[0], depth))
    if origin is tuple and inner[-1] is not Ellipsis:
        return st.tuples(*(values(part, depth) for part in inner))
    if origin is tuple:
        return st.just(()) if depth > 4 else st.lists(values(inner[0], depth), max_size=2).map(tuple)
    if origin in (dict, Mapping):
        return st.dictionaries(st.text(max_size=3), values(inner[1], depth), max_size=2)
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{f.name: values(hints[f.name], depth + 1) for f in fields(hint)})
    return st.sampled_from(hint) if issubclass(hint, Enum) else SCALARS[hint]


@pytest.mark.parametrize("kind", [*DOCUMENTS, *PARTS], ids=lambda kind: kind.__name__)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_record_is_the_same_after_json_and_yaml(kind: type, data: st.DataObject):
    record = data.draw(values(kind))
    written = plain(record)
    assert read(kind, json.loads(json.dumps(written, allow_nan=False))) == record
    assert read(kind, yaml.safe_load(yaml.safe_dump(written)), "it", "program") == record


@given(st.builds(FFFSpec, st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), trunk=st.integers(0, 9)))
def test_a_layer_is_the_same_in_a_checkpoint(spec: FFFSpec):
    layer = SavedLayer(Placement(Position.SPLIT, ("a", "b"), exit=("c",), width=3), spec, "a.weight")
    assert read(SavedLayer, json.loads(json.dumps(plain(layer))), "block a", "checkpoint") == layer


@pytest.mark.parametrize(
    "record",
    [
        *known_machines().values(),
        Deployment("cpu", {"a": "int8"}, ("b",), (), (("b", "c"),), "bfloat16"),
        Distillation((Stage(steps=3, objectives=Objectives(clm=1.0), data=Data(train=("a",))),)),
        Plan({"a": PlannedBlock(3)}),
    ],
    ids=lambda record: type(record).__name__,
)
def test_records_with_checks_are_the_same_too(record: Any):
    assert read(type(record), json.loads(json.dumps(plain(record)))) == record


@dataclass(frozen=True)
class Inner:
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.share > 1:
            raise FFFError(f"share is {self.share}; expected at most 1")


@dataclass(frozen=True)
class Outer:
    count: int
    inner: Inner = field(default_factory=Inner)
    names: tuple[str, ...] = ()
    ends: tuple[float, float] | None = None
    parts: dict[str, Inner] = field(default_factory=dict)
    position: Position = Position.MODULE
    path: Path | None = None


def test_json_has_no_nan():
    record = {
        "a": math.nan,
        "b": [Outer(1, path=Path("x"), ends=(math.inf, np.float64(2.5)))],
        "n": np.int64(3),
    }
    written = plain(record)
    assert (written["a"], written["b"][0]["ends"], written["n"]) == (None, [None, 2.5], 3)
    assert written["b"][0]["path"] == "x"
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert math.isnan(read(Inner, json.loads('{"share": NaN}')).share)  # as earlier releases wrote it


def test_text_may_be_of_a_class_of_its_own():
    class Version(str):
        pass

    assert type(plain({"a": Version("2.13.0")})["a"]) is str


def test_what_json_cannot_say_is_no_plain_value():
    with pytest.raises(TypeError, match="object is no plain value"):
        plain({"a": object()})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "it is None; expected keys and values"),
        ([], "it is []; expected keys and values"),
        ({}, "it lacks count"),
        ({"count": "many"}, "count is 'many'; expected a whole number"),
        ({"count": 1.5}, "count is 1.5; expected a whole number"),
        ({"count": True}, "count is True; expected a whole number"),
        ({"count": None}, "count is None; expected a whole number"),
        ({"count": math.inf}, "count is inf; expected a whole number"),
        ({"cuont": 1}, "unknown key cuont; did you mean count?"),
        ({"count": 1, 3: 4}, "unknown key 3; did you mean"),
        ({"count": 1, "inner": 3}, "inner is 3; expected keys and values"),
        ({"count": 1, "inner": {"sahre": 1}}, "unknown key inner.sahre; did you mean inner.share?"),
        ({"count": 1, "inner": {"share": 2}}, "inner: share is 2.0; expected at most 1"),
        ({"count": 1, "names": ["a", 3]}, "names.1 is 3; expected text"),
        ({"count": 1, "ends": [1]}, "ends is [1]; expected a list of 2"),
        ({"count": 1, "ends": [1, "x"]}, "ends.1 is 'x'; expected a number"),
        ({"count": 1, "parts": {"x": {}, "y": {"share": []}}}, "parts.y.share is []; expected a number"),
        ({"count": 1, "parts": {"y": {"share": 3}}}, "parts.y: share is 3.0; expected at most 1"),
        ({"count": 1, "parts": []}, "parts is []; expected keys and values"),
        ({"count": 1, "position": "here"}, "position is 'here'; expected one of module, split, handover"),
        ({"count": 1, "path": 3}, "path is 3; expected a path"),
        ({"count": "x" * 1000}, "expected a whole number"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(given: Any, message: str):
    for where, start in (("", ""), ("file", "file")):
        with pytest.raises(FFFError) as refused:
            read(Outer, given, where)
        said = str(refused.value)
        assert (message in said) or (start and message.replace("it ", "file ") in said.replace("file.", ""))
        assert len(said) < 150
        assert "\n" not in said


def test_a_person_may_write_numbers_and_lists_as_yaml_reads_them():
    written = "{count: 1e3, names: a, inner: {share: 4e-5}, ends: [1, 2]}"
    found = read(Outer, yaml.safe_load(written))
    assert found == Outer(1000, Inner(4e-5), ("a",), (1.0, 2.0))
    with pytest.raises(FFFError, match="names is 'a'; expected a list"):
        read(Outer, {"count": 1, "names": "a"}, author="program")


def test_unknown_keys_are_ignored_of_programs_and_warn_of_checkpoints():
    given = {"count": 1, "colour": 2, "parts": {"a": {"size": 3}}}
    expected = Outer(1, parts={"a": Inner()})
    assert read(Outer, given, author="program") == expected
    with pytest.warns(UserWarning, match="ignored unknown keys of") as warned:
        assert read(Outer, given, "config", "checkpoint") == expected
    assert [str(one.message).split(" of ")[1] for one in warned] == ["config: colour", "config.parts.a: size"]
    with pytest.raises(FFFError, match=r"config lacks count; convert the model, or deploy it, again"):
        read(Outer, {}, "config", "checkpoint")


def test_a_machine_is_described_by_hand():
    described = plain(known_machines()["t4"])
    assert read(Hardware, described | {"bandwidth": "1e9"}).bandwidth == 1e9
    with pytest.raises(FFFError, match="unknown key wings; did you mean"):
        read(Hardware, described | {"wings": 2})
