"""Arithmetic, comparison and logic, element by element with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from onnxprune.recover.executor.registry import Call, op


def aligned(*values: Tensor) -> tuple[Tensor, ...]:
    """The tensors on one device: shape arithmetic stays on the CPU until it meets activations."""
    device = next((value.device for value in values if value.device.type != "cpu"), None)
    return values if device is None else tuple(value.to(device) for value in values)


def _divide(left: Tensor, right: Tensor) -> Tensor:
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


_BINARY: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
    "Add": (7, torch.add),
    "Sub": (7, torch.sub),
    "Mul": (7, torch.mul),
    "Div": (7, _divide),
    "Equal": (7, torch.eq),
    "Greater": (7, torch.gt),
    "Less": (7, torch.lt),
    "GreaterOrEqual": (12, torch.ge),
    "LessOrEqual": (12, torch.le),
    "And": (7, torch.logical_and),
    "Or": (7, torch.logical_or),
    "Xor": (7, torch.logical_xor),
}

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}

_VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}


def _register() -> None:
    for name, (since, function) in _BINARY.items():
        op(name, since=since)(lambda call, a, b, function=function: function(*aligned(a, b)))
    for name, single in _UNARY.items():
        op(name, since=6)(lambda call, x, single=single: single(x))
    for name, pair in _VARIADIC.items():
        # functools.reduce over broadcasting pairs is exact for any number of inputs.
        op(name, since=6)(lambda call, *values, pair=pair: reduce(pair, aligned(*values)))


_register()


@op("Mean", since=6)
def mean(call: Call, *values: Tensor) -> Tensor:
    """Mean of several tensors, element by element."""
    return reduce(torch.add, aligned(*values)) / len(values)


@op("Pow", since=7)
def power(call: Call, base: Tensor, exponent: Tensor) -> Tensor:
    """Base to the exponent, in the base's type."""
    base, exponent = aligned(base, exponent)
    if exponent.numel() == 1 and exponent.dim() <= base.dim() and not exponent.requires_grad:
        # A plain number keeps the gradient finite where the base is zero.
        return torch.pow(base, exponent.item()).to(base.dtype)
    return torch.pow(base, exponent).to(base.dtype)


@op("Mod", since=10)
def modulo(call: Call, left: Tensor, right: Tensor) -> Tensor:
    """Remainder with the divisor's sign, or with fmod the dividend's."""
    left, right = aligned(left, right)
    return torch.fmod(left, right) if call.integer("fmod", 0) else torch.remainder(left, right)


@op("IsInf", since=10)
def is_inf(call: Call, x: Tensor) -> Tensor:
    """Whether values are infinite, of either or of one sign."""
    positive = (
        torch.isposinf(x) if call.integer("detect_positive", 1) else torch.zeros_like(x, dtype=torch.bool)
    )
    return positive | torch.isneginf(x) if call.integer("detect_negative", 1) else positive


@op("Where", since=9)
def where(call: Call, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The values of x where the condition holds, of y elsewhere."""
    condition, x, y = aligned(condition, x, y)
    return torch.where(condition, x, y)


@op("CumSum", since=11)
def cumulative_sum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """Running sum along an axis, from either end, with or without the element itself."""
    dim = int(axis)
    if call.integer("reverse", 0):
        x = x.flip(dim)
    total = x.cumsum(dim)
    if call.integer("exclusive", 0):
        total = total - x
    return total.flip(dim) if call.integer("reverse", 0) else total
