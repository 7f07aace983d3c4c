"""What every implementation of the ops is: the protocol that `reference`, `cpu` and `cuda` follow."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from fffconvert.runtime.weights import Scales, Weights

Operation = Literal["forward", "backward", "inference"]
Function = TypeVar("Function", bound=Callable[..., Any])


class Passed(NamedTuple):
    """A forward pass that was made: what it took and what it found on the way.

    Attributes:
        x: [tokens, d_in]
        weights: The trees.
        logits: [tokens, T, D + 1], s at the visited nodes.
        leaf: [tokens, T], the leaf reached, int64.
        activation: A key of `ACTIVATIONS`.
    """

    x: Tensor
    weights: Weights
    logits: Tensor
    leaf: Tensor
    activation: str


@dataclass(frozen=True)
class Status:
    """Whether a backend can run on this machine.

    Attributes:
        available: Whether it can.
        reason: Why not; for one that can, what it is.
    """

    available: bool
    reason: str


@dataclass(frozen=True)
class Support:
    """What a backend computes, whatever the machine.

    Attributes:
        device: The type of device that it computes on; None for all.
        inputs: Types of x.
        rows: Types of stored rows; int8 ones for inference alone.
        operations: Which of the ops; one without "backward" cannot train.
    """

    device: str | None
    inputs: tuple[torch.dtype, ...]
    rows: tuple[torch.dtype, ...]
    operations: tuple[Operation, ...] = ("forward", "backward", "inference")

    def why_not(self, operation: Operation, x: Tensor, weights: Weights) -> str | None:
        """The first thing that stands against a computation, as `Backend.why_not`."""
        if operation not in self.operations:
            return f"it computes {', '.join(self.operations)}, not {operation}"
        if self.device is not None and x.device.type != self.device:
            return f"it computes on {self.device}, the tensors are on {x.device.type}; move them first"
        for what, dtype, known in (
            ("inputs", x.dtype, self.inputs),
            ("rows", weights.in_weight.dtype, self.rows),
        ):
            if dtype not in known:
                return f"its {what} are {', '.join(map(str, known))}, not {dtype}"
        return None


class Prepared(Protocol):
    """One layer in a backend's own form, for many calls with the same weights.

    Attributes:
        copied: Whether it holds copies, so that the weights may change unseen.
    """

    copied: bool

    def takes(self, x: Tensor) -> bool:
        """Whether it computes with x: [..., d_in], of this device, type and width."""

    def __call__(self, x: Tensor) -> Tensor:
        """Compute [..., d_out] from [..., d_in], in the dtype of `x`."""


class Backend(Protocol):
    """One implementation of the ops; a module of this folder that has these names is one.

    Attributes:
        NAME: What it is called on the command line.
        SUPPORT: What it computes.
    """

    NAME: str
    SUPPORT: Support

    def status(self) -> Status:
        """Whether it can run here."""

    def why_not(
        self, operation: Operation, x: Tensor, weights: Weights, bias: Tensor | None = None
    ) -> str | None:
        """Why it does not compute this here, from the arguments of the op; None if it does."""

    def forward(self, x: Tensor, weights: Weights, activation: str) -> tuple[Tensor, Tensor, Tensor]:
        """What `ops.cmm` gives, from the same arguments."""

    def backward(
        self, grad_y: Tensor, grad_logits: Tensor, passed: Passed, rows: bool = True
    ) -> list[Tensor]:
        """Differentiate `forward` along the paths taken: only visited rows receive a gradient.

        Args:
            grad_y: [tokens, d_out]
            grad_logits: [tokens, T, D + 1]
            passed: The forward pass.
            rows: Whether the weights' gradients are asked for too.

        Returns:
            The gradients of x and, with `rows`, of each tensor given in the weights, in that order.
        """

    def inference(self, x: Tensor, bias: Tensor, weights: Weights, scales: Scales, activation: str) -> Tensor:
        """What `ops.cmm_inference` gives, from the same arguments."""

    def prepare(self, bias: Tensor, weights: Weights, scales: Scales, activation: str) -> Prepared | None:
        """A layer for many calls of `inference`, of the same arguments; None if it has no form for that."""


def without_autocast(function: Function) -> Function:
    """Have a function of a tensor, and of more, compute in the types given whatever autocast says."""

    @functools.wraps(function)
    def run(x: Tensor, *arguments: Any, **options: Any) -> Any:
        device = x.device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return function(x, *arguments, **options)
        with torch.autocast(device, enabled=False):
            return function(x, *arguments, **options)

    return cast(Function, run)
