"""Ops that treat each element alone: labels that meet are merged, with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.graph.fused import DOMAIN
from onnxprune.graph.labels import DATA, Labels, compact
from onnxprune.graph.ops.context import Context, State
from onnxprune.graph.ops.registry import NoRule, rule
from onnxprune.graph.structure import BoolArray, IntArray

UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]
NARY = [
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Clip",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
]


@rule(*UNARY)
@rule("Gelu", "QuickGelu", domain=DOMAIN)
def unary(ctx: Context) -> None:
    """Pass the labels; other inputs (CastLike's type) have no say in single elements."""
    labels = ctx.labels(0)
    for index in range(len(ctx.node.output)):
        ctx.emit(index, labels)


@rule("Dropout")
def dropout(ctx: Context) -> None:
    """Passes the labels at inference; in training it draws a random mask of the tensor's size."""
    training = ctx.value(2)
    if ctx.has(2) and (training is None or training.any()):
        raise NoRule("it drops at random")
    unary(ctx)


@rule(*NARY)
@rule("BiasGelu", "FastGelu", domain=DOMAIN)
def nary(ctx: Context) -> None:
    """Merge what meets at each element, constants included."""
    ctx.emit(0, combine(ctx, [index for index in range(len(ctx.node.input)) if ctx.has(index)]))


def combine(ctx: Context, indices: Sequence[int], start: Labels | None = None) -> Labels:
    """Labels of the elementwise result of some inputs (and of ``start``), constants bound to it."""
    moving = [ctx.labels(index) for index in indices if not ctx.is_constant(index)]
    constant = [index for index in indices if ctx.is_constant(index)]
    if start is not None:
        moving.insert(0, start)
    if not moving:
        return Labels.data(ctx.out_shape())
    shapes = [ctx.shape(index) for index in constant]
    try:
        shape = np.broadcast_shapes(*(labels.shape for labels in moving), *shapes)
    except ValueError:
        raise NoRule("its inputs' shapes don't fit each other") from None
    result = moving[0]
    for labels in moving[1:]:
        result = meet(ctx, result, labels)
    result = ctx.spread(result, shape)
    for index in constant:
        ctx.bind_broadcast(index, result)
    return result


def narrow(labels: Labels, shape: Sequence[int]) -> Labels:
    """The labels that the elements of a constant of ``shape`` take when it is broadcast against ``labels``.

    An element that meets several labels is bound by none of them.
    """
    lead = labels.core.ndim - len(shape)
    core = labels.core
    for axis in range(core.ndim):
        broadcast = axis < lead or (shape[axis - lead] == 1 and labels.shape[axis] > 1)
        if broadcast and core.shape[axis] > 1:
            low, high = core.min(axis=axis, keepdims=True), core.max(axis=axis, keepdims=True)
            core = np.where(low == high, low, DATA)
    return Labels(tuple(shape), compact(core.reshape(core.shape[lead:])))


def settle_constants(state: State) -> None:
    """Give the constants that were tied to labels the ones that these have come to in the end."""
    for name, (labels, view) in state.bound.items():
        present = Labels(labels.shape, compact(state.atoms.find(labels.core)))
        shape = state.shapes[name]
        core = narrow(present, view).core
        state.labels[name] = Labels(shape, core if len(view) == len(shape) else core.reshape(-1))


def meet_again(state: State) -> None:
    """Repeat the meetings in which something was set against several labels; they may be one by now."""
    pending, state.met = state.met, []
    for ctx, left, right in pending:
        meet(ctx, ctx.refresh(left), ctx.refresh(right))


def meet(ctx: Context, left: Labels, right: Labels) -> Labels:
    """Merge two tensors' labels under broadcasting and return the result's.

    An element that is broadcast against several atoms (a gate of one channel over all channels)
    merges with none of them: a constant or fixed one leaves them free, an atom is pinned, because
    it is needed as long as any of them stays. A fixed element that meets one atom pins it.
    """
    rank = max(len(left.shape), len(right.shape))
    left, right = lift(left, rank), lift(right, rank)
    try:
        shape = np.broadcast_shapes(left.shape, right.shape)
    except ValueError:
        raise NoRule("its inputs' shapes don't fit each other") from None
    left_many, right_many = _meets_many(left, right), _meets_many(right, left)
    core_shape = np.broadcast_shapes(left.core.shape, right.core.shape)
    a, b = np.broadcast_to(left.core, core_shape), np.broadcast_to(right.core, core_shape)
    a_many, b_many = np.broadcast_to(left_many, core_shape), np.broadcast_to(right_many, core_shape)
    if left_many.any() or right_many.any():
        ctx.state.met.append((ctx, left, right))
    paired = ~a_many & ~b_many
    both = paired & (a >= 0) & (b >= 0)
    ctx.atoms.union(a[both], b[both])
    fixed = paired & ((a < 0) != (b < 0))
    ctx.pin(np.maximum(a, b)[fixed], "its other input has no channels that can go")
    ctx.pin(a[a_many], "it is spread over several channels")
    ctx.pin(b[b_many], "it is spread over several channels")
    result = np.where(both, a, DATA)
    result = np.where(a_many & ~b_many, b, result)
    result = np.where(b_many & ~a_many, a, result)
    return Labels(shape, compact(ctx.atoms.find(result)))


def lift(labels: Labels, rank: int) -> Labels:
    """The labels with leading axes of size 1 up to ``rank``."""
    lead = (1,) * (rank - len(labels.shape))
    return Labels(lead + labels.shape, labels.core.reshape(lead + labels.core.shape))


def _meets_many(one: Labels, other: Labels) -> BoolArray:
    """For each element of ``one``, whether broadcasting sets it against several labels of ``other``."""
    low: IntArray = other.core
    high: IntArray = other.core
    for axis, size in enumerate(one.shape):
        if size == 1 and other.core.shape[axis] > 1:
            low, high = low.min(axis=axis, keepdims=True), high.max(axis=axis, keepdims=True)
    many: BoolArray = low != high
    return many
