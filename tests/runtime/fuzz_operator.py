"""Mutate small models that hold the ONNX Runtime operator, and load and run them.

Each is refused, by ONNX Runtime or by the operator, or computes what a loop over tokens and nodes computes.
Ten thousand under AddressSanitizer, after `make check-native`:

    python tests/runtime/fuzz_operator.py --count 10000 --library build/sanitized/native/libfffcmm.so
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

NAMES = (
    "x", "bias", "in_weight", "in_bias", "out_weight", "leaf_constant", "leaf_in_weight", "leaf_in_bias",
    "leaf_gate_weight", "leaf_gate_bias", "leaf_out_weight", "leaf_threshold", "in_weight_scale",
    "out_weight_scale", "leaf_constant_scale", "leaf_in_weight_scale", "leaf_gate_weight_scale",
    "leaf_out_weight_scale",
)  # fmt: skip
ROWS = ("in_weight", "out_weight", "leaf_constant", "leaf_in_weight", "leaf_gate_weight", "leaf_out_weight")
REQUIRED = NAMES[:5]
RELU, IDENTITY = 4, 14
TYPES = ("float32", "int8", "bfloat16", "float64", "int64", "float16", "uint8", "bool")


def valid(rng: np.random.Generator) -> dict:
    """A model that is as it should be: its inputs by name, the activation, and which are known at load."""
    trees, depth, branches, width = (
        int(rng.integers(low, high)) for low, high in ((1, 3), (0, 4), (1, 3), (0, 5))
    )
    d_in, d_out, nodes = int(rng.integers(1, 20)), int(rng.integers(1, 20)), (2 << depth) - 1
    leaves = nodes + 1
    shapes = {
        "x": (int(rng.integers(0, 9)), d_in),
        "bias": (d_out,),
        "in_weight": (trees, nodes, d_in),
        "in_bias": (trees, nodes),
        "out_weight": (trees, branches * nodes, d_out),
    }
    if branches == 2:
        shapes["leaf_constant"] = (trees, leaves, d_out)
    if width:
        shapes |= {"leaf_in_weight": (trees, leaves, width, d_in), "leaf_in_bias": (trees, leaves, width)}
        shapes["leaf_out_weight"] = (trees, leaves, width, d_out)
        if rng.integers(2):
            shapes |= {
                "leaf_gate_weight": (trees, leaves, width, d_in),
                "leaf_gate_bias": (trees, leaves, width),
            }
        if rng.integers(2):
            shapes["leaf_threshold"] = (trees, leaves, width)
    row_type = str(rng.choice(["float32", "bfloat16", "int8"]))
    if row_type == "int8":
        shapes |= {f"{name}_scale": shapes[name][:-1] for name in ROWS if name in shapes}
    types = {name: row_type if name in ROWS else "float32" for name in shapes}
    return {
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "types": types,
        "activation": int(rng.choice([RELU, IDENTITY])),
        "fed": {name for name in shapes if name == "x" or rng.integers(4) == 0},
        "named": {name for name in shapes if rng.integers(3) == 0},
    }


def mutate(model: dict, rng: np.random.Generator) -> None:
    """Change one thing that a file says."""
    shapes, types = model["shapes"], model["types"]
    name = str(rng.choice(list(shapes)))
    shape = shapes[name]
    axis = int(rng.integers(len(shape))) if shape else 0
    match int(rng.integers(12)):
        case 0 | 1 | 2 if shape:
            shape[axis] = max(0, shape[axis] + int(rng.choice([-2, -1, 1, 2])))
        case 3 if shape:
            shape[axis] = int(rng.choice([0, 1, 2 * shape[axis], shape[axis] // 2, 2 * shape[axis] + 1]))
        case 4:
            shape.insert(axis, int(rng.integers(0, 3)))
        case 5 if shape:
            del shape[axis]
        case 6:
            types[name] = str(rng.choice(TYPES))
        case 7:
            del shapes[name]
        case 8:
            extra = str(rng.choice(NAMES))
            shapes[extra] = list(shape)
            types[extra] = types[name]
        case 9:
            other = str(rng.choice(list(shapes)))
            shapes[name], shapes[other] = shapes[other], shapes[name]
        case 10:
            rows = str(rng.choice(TYPES[:3]))
            types.update({other: rows for other in ROWS if other in shapes})
        case _:
            model["activation"] = int(rng.choice([-1, 15, 99, 2**62, -(2**63)]))


def draw(model: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Small integers, so that sums are exact; bfloat16 as what numpy knows of it, its bits."""
    values = {}
    for name, shape in model["shapes"].items():
        whole = rng.integers(-2, 3, shape)
        whole = 2 * whole + 1 if name == "in_bias" else 2 * whole if name == "in_weight" else whole
        whole = np.abs(whole) + 1 if name.endswith("scale") else whole
        kind = model["types"][name]
        if kind == "bfloat16":
            values[name] = (whole.astype("float32").view("uint32") >> 16).astype("uint16")
        else:
            values[name] = whole.astype(kind)
    return values


def write(model: dict, values: dict[str, np.ndarray], rng: np.random.Generator) -> bytes:
    """The file: weights inside, what is fed as inputs, some of them with sizes that have names only."""
    inputs, initializers, names = [], [], []
    given = [name for name in NAMES if name in model["shapes"]]
    for name in NAMES[: NAMES.index(given[-1]) + 1] if given else ():
        names.append(name if name in given else "")
        if name not in given:
            continue
        kind = getattr(
            TensorProto, model["types"][name].upper().replace("32", "").replace("FLOAT64", "DOUBLE")
        )
        shape = model["shapes"][name]
        if name in model["fed"]:
            sizes = [f"{name}{i}" if name in model["named"] else size for i, size in enumerate(shape)]
            inputs.append(helper.make_tensor_value_info(name, kind, sizes if rng.integers(9) else None))
        else:
            data = values[name].tobytes()
            initializers.append(helper.make_tensor(name, kind, shape, data, raw=True))
    node = helper.make_node("CMM", names, ["y"], domain="fffconvert", activation=model["activation"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", inputs, [y], initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("fffconvert", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def loop(model: dict, values: dict[str, np.ndarray]) -> np.ndarray:
    """One token, one tree and one node after another."""
    w = {}
    for name, value in values.items():
        wide = value.astype("uint32") << 16 if model["types"][name] == "bfloat16" else value
        w[name] = (wide.view("float32") if model["types"][name] == "bfloat16" else wide).astype("float64")
        if model["types"][name] == "int8":
            w[name] = w[name] * values[f"{name}_scale"][..., None]
    act = (lambda s: max(s, 0.0)) if model["activation"] == RELU else (lambda s: s)
    trees, nodes = w["in_bias"].shape
    y = np.tile(w["bias"], (len(w["x"]), 1))
    for i, token in enumerate(w["x"]):
        for t in range(trees):
            n = 0
            while n < nodes:
                s = w["in_weight"][t, n] @ token + w["in_bias"][t, n]
                row = 2 * n + (s > 0) if w["out_weight"].shape[1] == 2 * nodes else n
                y[i] += act(s) * w["out_weight"][t, row]
                n = 2 * n + 1 + (s > 0)
            leaf = n - nodes
            if "leaf_constant" in w:
                y[i] += w["leaf_constant"][t, leaf]
            for j in range(w["leaf_out_weight"].shape[2] if "leaf_out_weight" in w else 0):
                h = act(w["leaf_in_weight"][t, leaf, j] @ token + w["leaf_in_bias"][t, leaf, j])
                if "leaf_threshold" in w and abs(h) <= w["leaf_threshold"][t, leaf, j]:
                    h = 0.0
                if "leaf_gate_weight" in w:
                    h *= w["leaf_gate_weight"][t, leaf, j] @ token + w["leaf_gate_bias"][t, leaf, j]
                y[i] += h * w["leaf_out_weight"][t, leaf, j]
    return y


def fits(model: dict) -> bool:
    """Whether the operator should take it, by the rules as the Python op states them."""
    shapes, types = model["shapes"], model["types"]
    if not set(REQUIRED) <= set(shapes) or model["activation"] not in (RELU, IDENTITY):
        return False
    if any(len(shapes[name]) != rank for name, rank in (("in_weight", 3), ("out_weight", 3))):
        return False
    (trees, nodes, d_in), (_, rows, d_out) = shapes["in_weight"], shapes["out_weight"]
    block = {"leaf_in_weight", "leaf_in_bias", "leaf_out_weight"}
    gate = {"leaf_gate_weight", "leaf_gate_bias"}
    has = set(shapes)
    if len(has & block) not in (0, 3) or len(has & gate) not in (0, 2):
        return False
    if has & (gate | {"leaf_threshold"}) and not block <= has:
        return False
    if (
        trees < 1
        or d_in < 1
        or d_out < 1
        or nodes < 1
        or nodes & (nodes + 1)
        or rows not in (nodes, 2 * nodes)
    ):
        return False
    out = shapes.get("leaf_out_weight", [0] * 4)
    if len(out) != 4 or len(shapes["x"]) != 2:
        return False
    leaf, width = [trees, nodes + 1], out[2]
    expected = {
        "x": [shapes["x"][0], d_in], "bias": [d_out],
        "in_weight": [trees, nodes, d_in], "in_bias": [trees, nodes],
        "out_weight": [trees, rows, d_out], "leaf_constant": [*leaf, d_out],
        "leaf_in_weight": [*leaf, width, d_in], "leaf_gate_weight": [*leaf, width, d_in],
        "leaf_out_weight": [*leaf, width, d_out],
    }  # fmt: skip
    expected |= {name: [*leaf, width] for name in ("leaf_in_bias", "leaf_gate_bias", "leaf_threshold")}
    expected |= {f"{name}_scale": expected[name][:-1] for name in ROWS}
    row_type = types["in_weight"]
    scaled = {f"{name}_scale" for name in ROWS if name in has and row_type == "int8"}
    return (
        all(shapes[name] == expected[name] for name in has)
        and row_type in ("float32", "bfloat16", "int8")
        and all(types[name] == (row_type if name in ROWS else "float32") for name in has)
        and {name for name in has if name.endswith("_scale")} == scaled
    )


def open_session(file: bytes, library: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # each tensor in memory of its own, which a sanitizer watches
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def feeds(model: dict, values: dict[str, np.ndarray]) -> dict[str, onnxruntime.OrtValue]:
    kinds = {"bfloat16": TensorProto.BFLOAT16}
    fed = {}
    for name in model["fed"] & set(values):
        kind = model["types"][name]
        value = np.ascontiguousarray(values[name])
        if kind in kinds:
            fed[name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(value, kinds[kind])
        else:
            fed[name] = onnxruntime.OrtValue.ortvalue_from_numpy(value)
    return fed


def flip(file: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(file)
    for at in rng.integers(0, len(file), int(rng.integers(1, 4))):
        changed[at] = int(rng.integers(256))
    return bytes(changed)


def outcome(seed: int, library: str) -> str:
    """Make, mutate and try one model; tells what came of it."""
    rng = np.random.default_rng(seed)
    model = valid(rng)
    for _ in range(int(rng.integers(0, 4))):
        if model["shapes"]:
            mutate(model, rng)
    values = draw(model, rng)
    file = write(model, values, rng)
    flipped = rng.integers(5) == 0  # of such a file it is not known what it says
    stage, y, error = "load", None, None
    try:
        session = open_session(flip(file, rng) if flipped else file, library)
        stage = "run"
        (y,) = session.run_with_ort_values(None, feeds(model, values))
    except Exception as caught:  # ONNX Runtime raises many types
        error = caught
    if flipped:
        return "with flipped bytes, computed" if error is None else f"with flipped bytes, refused at {stage}"
    assert (error is None) == fits(model), f"seed {seed}: {error or 'computed though it does not fit'}"
    if error is not None:
        return f"refused at {stage}"
    assert np.array_equal(y.numpy(), loop(model, values)), f"seed {seed}: other outputs than the loop's"
    return "computed"


def sanitized(library: str) -> bool:
    return b"__asan_init" in Path(library).read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--library", required=True)
    options = parser.parse_args()
    if sanitized(options.library) and "libasan" not in os.environ.get("LD_PRELOAD", ""):
        names = ("libasan.so", "libubsan.so", "libstdc++.so.6")
        found = [
            subprocess.run(
                ["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout
            for name in names
        ]
        settings = {"LD_PRELOAD": " ".join(map(str.strip, found)), "ASAN_OPTIONS": "detect_leaks=0"}
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})
    counts = Counter(
        outcome(seed, options.library) for seed in range(options.first, options.first + options.count)
    )
    for what, count in sorted(counts.items()):
        sys.stdout.write(f"{count} {what}\n")


if __name__ == "__main__":
    main()
