from __future__ import annotations

import copy

import pytest
import torch
from zoo.reference import masked_dense

from fffconvert.benchmarks import dense
from fffconvert.benchmarks.check import WrongOutputError
from fffconvert.benchmarks.train import gradient_error
from fffconvert.planning import FFFSpec
from fffconvert.tree import FFFLayer


def masked(layer: FFFLayer) -> dense.MaskedDense:
    return dense.MaskedDense(layer.fff_in_weight, layer.fff_in_bias, layer.fff_out_weight, layer.fff_bias)


def test_the_dense_block_is_two_products_and_an_activation():
    block = dense.DenseFFN(4, 7, "relu").double()
    x = torch.randn(3, 4, dtype=torch.float64)
    up, down = block.dense_up, block.dense_down
    expected = (x @ up.weight.T + up.bias).clamp(min=0) @ down.weight.T + down.bias
    torch.testing.assert_close(block(x), expected)


def test_int8_is_close_and_leaves_the_block_alone():
    torch.manual_seed(0)
    block = dense.DenseFFN(32, 64).eval()
    before = copy.deepcopy(block.state_dict())
    x = torch.randn(50, 32)
    with torch.inference_mode():
        y, rounded = block(x), dense.int8(block)(x)
    assert not torch.equal(y, rounded)
    assert (y - rounded).abs().max() < 0.05 * y.abs().max()
    torch.testing.assert_close(block.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(("trees", "depth"), [(1, 0), (1, 5), (4, 3)])
def test_masked_dense_is_the_published_training_form(trees, depth):
    torch.manual_seed(0)
    layer = FFFLayer(FFFSpec(8, 6, depth, trees=trees), dtype=torch.float64)
    torch.nn.init.normal_(layer.fff_bias)
    x = torch.randn(40, 8, dtype=torch.float64)
    parameters = [layer.fff_in_weight.flatten(0, 1), layer.fff_in_bias.flatten()]
    y, _ = masked_dense(x, *parameters, layer.fff_out_weight.flatten(0, 1).T, depth)
    torch.testing.assert_close(masked(layer)(x), y + layer.fff_bias)
    torch.testing.assert_close(masked(layer)(x), layer(x))


class TestGradientError:
    def setup_method(self):
        torch.manual_seed(0)
        self.layer = FFFLayer(FFFSpec(16, 16, 4, trees=2)).train()
        self.masked = masked(self.layer)
        self.x, self.gradient = torch.randn(60, 16), torch.randn(60, 16)

    def test_the_layer_passes(self):
        error, left_out = gradient_error(self.layer, self.masked, self.x, self.gradient)
        assert 0 < error < 1e-5
        assert left_out == 0

    @pytest.mark.parametrize("name", ["in_weight", "in_bias", "out_weight"])
    def test_a_wrong_gradient_is_refused(self, name):
        getattr(self.layer, f"fff_{name}").register_hook(lambda grad: grad * 1.01)
        with pytest.raises(WrongOutputError, match=f"gradient of {name}"):
            gradient_error(self.layer, self.masked, self.x, self.gradient)

    def test_a_wrong_gradient_of_the_input_is_refused(self):
        def double(module, args):
            return (args[0] * 2 - args[0].detach(),)

        self.layer.register_forward_pre_hook(double)
        with pytest.raises(WrongOutputError, match="gradient of x"):
            gradient_error(self.layer, self.masked, self.x, self.gradient)

    def test_wrong_outputs_are_refused(self):
        with torch.no_grad():
            self.layer.fff_bias += 0.01
        with pytest.raises(WrongOutputError, match="output"):
            gradient_error(self.layer, self.masked, self.x, self.gradient)
