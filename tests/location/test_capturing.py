"""Recording a run: what depends on what, and which module did it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fffconvert.location.capturing import capture


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(4))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def record(body):
    return capture(Net(body), {"x": torch.randn(3, 4)})


def test_constants_are_what_does_not_depend_on_the_inputs():
    recorded = record(lambda m, x: m.linear(x) * (m.scale + 1) + torch.arange(4))
    (output,) = recorded.outputs
    assert not output.meta["const"]
    product, numbers = output.all_input_nodes
    assert not product.meta["const"]
    assert numbers.meta["const"]
    assert product.all_input_nodes[1].meta["const"]


def test_values_are_those_of_the_run():
    recorded = record(lambda m, x: F.gelu(m.linear(x)))
    (output,) = recorded.outputs
    linear = output.all_input_nodes[0]
    torch.testing.assert_close(F.gelu(linear.meta["value"]), output.meta["value"])


def test_writing_in_place_is_a_new_value_for_every_view():
    def body(m, x):
        y = m.linear(x)
        view = y.view(4, 3)
        y.mul_(2)
        return view + 1

    (output,) = record(body).outputs
    seen, pending = set(), [output]
    while pending:
        node = pending.pop()
        seen.add(str(node.target))
        pending += node.all_input_nodes
    assert any("mul_" in name for name in seen)


def test_calls_know_their_module_and_its_tensors():
    recorded = record(lambda m, x: F.relu(m.linear(x)))
    root, linear = recorded.calls
    assert (root.path, linear.path) == ("", "linear")
    assert linear.parent == 0
    assert linear.positional
    assert linear.tensor_out
    assert [node.op for node in linear.inputs] == ["placeholder"]
    assert recorded.outputs[0].all_input_nodes == linear.outputs


def test_dropout_is_a_step_of_its_own_in_eval_mode():
    (output,) = record(lambda m, x: F.dropout(m.linear(x), 0.5, m.training)).outputs
    assert output.target is F.dropout


def test_unused_parameters_leave_no_trace():
    recorded = record(lambda m, x: x + 1)
    assert not [node for node in recorded.graph.nodes if node.op == "get_attr"]
