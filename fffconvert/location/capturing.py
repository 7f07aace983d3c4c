"""Record one real run of a model as an `fx.Graph`.

Two modes watch the run. The function mode sees calls that are one thing to the matcher (a linear map, an
einsum, dropout) before torch takes them apart or autocast changes them; everything else is recorded at the
aten level by the dispatch mode. Hooks note every module call with the nodes that it took and gave, which is
what ties a match back to modules. Symbolic tracing, export and dynamo were tried over many architectures and
miss blocks that an eager run shows; the price is that only executed code is seen.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from fffconvert.forward import evaluation, tensors_in
from fffconvert.private_names import (
    OpOverload,
    TorchDispatchMode,
    _disable_current_modes,
    address_of,
    schema_of,
)

LINEARS = {F.linear, torch.ops.aten.linear.default}
MATMULS = {
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.mm,
    Tensor.mm,
    torch.bmm,
    Tensor.bmm,
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
}
ADDMMS = {torch.addmm, Tensor.addmm, torch.ops.aten.addmm.default}
CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d}
CONVOLUTIONS |= {torch.ops.aten.convolution.default}
DROPOUTS = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
}
CHUNKS = {torch.chunk, Tensor.chunk}
ATTENTIONS = {F.scaled_dot_product_attention}
WHOLE: set[Any] = LINEARS | MATMULS | ADDMMS | CONVOLUTIONS | DROPOUTS | CHUNKS | ATTENTIONS
WHOLE |= {torch.einsum}
"""Functions recorded as one node. Others are recorded at the aten level."""


@dataclass
class Call:
    """One call of a module.

    Attributes:
        module: The module.
        path: Its first qualified name.
        parent: Index of the enclosing call, or None.
        inputs: Nodes of the tensors among its arguments, in order.
        positional: It was called with one positional argument and nothing else.
        outputs: Nodes of the tensors in its result.
        tensor_out: Its result is one bare tensor.
    """

    module: nn.Module
    path: str
    parent: int | None
    inputs: list[fx.Node]
    positional: bool
    outputs: list[fx.Node] = field(default_factory=list)
    tensor_out: bool = False


@dataclass
class Capture:
    """A recorded run.

    Each node's `meta` holds `value` (its tensor), `const` (it does not depend on the inputs) and `stack`
    (indices into `calls` of the module calls that it happened in, outermost first).
    """

    graph: fx.Graph
    calls: list[Call]
    outputs: list[fx.Node]


def capture(model: nn.Module, inputs: Mapping[str, Any]) -> Capture:
    """Run `model(**inputs)` once in eval mode and record it. The model is left as it was.

    Args:
        model: Any module.
        inputs: Keyword arguments of one forward pass; small ones will do.

    Returns:
        The recorded graph.
    """
    recorder = _Recorder(model)
    for name, value in inputs.items():
        for tensor in tensors_in(value):
            recorder.bind(tensor, recorder.graph.placeholder(_identifier(name)), const=False)
    with (
        evaluation(model),
        recorder.hooks(),
        _DispatchMode(recorder),
        _FunctionMode(recorder),
    ):
        result = model(**inputs)
    outputs = [recorder.node(tensor) for tensor in tensors_in(result)]
    return Capture(recorder.graph, recorder.calls, outputs)


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


class _Made(NamedTuple):
    """The node that made a tensor, and how often its memory had been written in place by then."""

    node: fx.Node
    writes: int


_NEVER_WRITTEN = _Made(fx.Graph().placeholder("nothing"), 0)


class _Recorder:
    def __init__(self, model: nn.Module) -> None:
        self.graph = fx.Graph()
        self.calls: list[Call] = []
        self._model = model
        self._stack: list[int] = []
        self._nodes: dict[int, _Made] = {}  # by id
        self._by_storage: dict[tuple[Any, ...], _Made] = {}
        self._written: dict[int, _Made] = {}  # by storage: all that was written in place there, and how often
        self._alive: list[Tensor] = []  # a freed tensor's id would be used again
        self._names: dict[int, str] = {}
        for name, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ):
            self._names.setdefault(id(tensor), name)

    def bind(self, tensor: Tensor, node: fx.Node, *, const: bool) -> None:
        node.meta.update(value=tensor, const=const, stack=tuple(self._stack))
        made = _Made(node, self._writes(tensor).writes)
        if id(tensor) not in self._nodes:
            self._alive.append(tensor)
        self._nodes[id(tensor)] = made
        key = _storage_key(tensor)
        if key is not None:
            self._by_storage[key] = made

    def node(self, tensor: Tensor) -> fx.Node:
        """The node that made `tensor`; a tensor never seen before is a constant."""
        found = self._nodes.get(id(tensor))
        if found is None and id(tensor) not in self._names:
            key = _storage_key(tensor)
            found = self._by_storage.get(key) if key is not None else None
        if found is None:
            name = self._names.get(id(tensor), f"_constant_{len(self._alive)}")
            node = self.graph.create_node("get_attr", name)
            self.bind(tensor, node, const=True)
            return node
        latest = self._writes(tensor)
        if found.writes < latest.writes:  # some of its memory was written through another tensor since
            node = self.graph.call_function(_overwritten, (found.node, latest.node))
            const = bool(found.node.meta["const"] and latest.node.meta["const"])
            self.bind(tensor, node, const=const)
            return node
        return found.node

    def record(self, function: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> None:
        written = _written(function, args, kwargs)
        node_args = fx.node.map_aggregate(
            (args, kwargs), lambda a: self.node(a) if isinstance(a, Tensor) else a
        )
        outputs = tensors_in(result)
        if not outputs:
            return
        node = self.graph.create_node("call_function", function, *_plain(node_args))
        const = all(source.meta["const"] for source in node.all_input_nodes)
        node.meta.update(value=None, const=const, stack=tuple(self._stack))
        for tensor in written:
            self._note_write(tensor, node)
        for tensor in written:
            self.bind(tensor, node, const=const)
        if isinstance(result, Tensor):
            self.bind(result, node, const=const)
        else:
            for index, item in enumerate(result):
                if isinstance(item, Tensor):
                    self.bind(item, self.graph.call_function(operator.getitem, (node, index)), const=const)

    def _writes(self, tensor: Tensor) -> _Made:
        return self._written.get(_storage(tensor) or 0, _NEVER_WRITTEN)

    def _note_write(self, tensor: Tensor, node: fx.Node) -> None:
        earlier = self._writes(tensor)
        state = node
        if earlier.writes:
            state = self.graph.call_function(_overwritten, (earlier.node, node))
            const = earlier.node.meta["const"] and node.meta["const"]
            state.meta.update(value=None, const=const, stack=tuple(self._stack))
        self._written[_storage(tensor) or 0] = _Made(state, earlier.writes + 1)

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        names: dict[int, str] = {}
        for name, module in self._model.named_modules():
            names.setdefault(id(module), name)
            if not isinstance(module, torch.jit.ScriptModule):
                handles.append(
                    module.register_forward_pre_hook(self._enter(names[id(module)]), with_kwargs=True)
                )
                handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with _disable_current_modes():
                inputs = [self.node(tensor) for tensor in tensors_in((args, kwargs))]
            parent = self._stack[-1] if self._stack else None
            positional = len(args) == 1 and not kwargs
            self.calls.append(Call(module, path, parent, inputs, positional))
            self._stack.append(len(self.calls) - 1)

        return hook

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        call = self.calls[self._stack.pop()]
        call.outputs = [self.node(tensor) for tensor in tensors_in(result)]
        call.tensor_out = isinstance(result, Tensor)


def _overwritten(stale: Any, writer: Any) -> Any:
    """Marks a tensor of which some memory was written through another one."""
    raise RuntimeError("a mark in a recorded graph, never called")


def _plain(node_args: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = node_args
    return tuple(args), dict(kwargs)


def _storage(tensor: Tensor) -> int | None:
    try:
        return int(address_of(tensor.untyped_storage()))
    except (NotImplementedError, RuntimeError):  # sparse tensors have no storage
        return None


def _storage_key(tensor: Tensor) -> tuple[Any, ...] | None:
    storage = _storage(tensor)
    if storage is None or tensor.numel() == 0 or tensor.is_nested:
        return None
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _written(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Tensors among the arguments that `function` writes to."""
    if not isinstance(function, OpOverload):
        return [args[0]] if kwargs.get("inplace") and isinstance(args[0], Tensor) else []
    schema = schema_of(function)
    if not schema.is_mutable:
        return []
    written = []
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            written += tensors_in(value)
    return written


class _FunctionMode(TorchFunctionMode):
    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in WHOLE:
            return func(*args, **kwargs)
        with _disable_current_modes():
            result = func(*args, **kwargs)
            if isinstance(result, Tensor) and not kwargs.get("inplace") and any(result is a for a in args):
                result = torch.ops.aten.alias.default(result)  # dropout in eval mode is a step of its own
            self._recorder.record(func, args, kwargs, result)
        return result


class _DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._recorder.record(func, args, kwargs, result)
        return result
