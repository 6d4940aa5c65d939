"""Data movement: the op itself is run on the labels, so that no index arithmetic is written twice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

from onnxprune.graph.labels import DATA, Labels, compact
from onnxprune.graph.ops.context import Context
from onnxprune.graph.ops.registry import NoRule, rule
from onnxprune.graph.structure import IntArray


@rule("Split", "Tile", "Transpose")
def move(ctx: Context) -> None:
    """Run the op on the labels; its other inputs must be constants."""
    move_labels(ctx)


@rule("DepthToSpace", "SpaceToDepth")
def blocks(ctx: Context) -> None:
    """Run the op on the labels; whole blocks go, since the block size stays."""
    why = "its blocks carry channels"
    source = ctx.uniform(ctx.labels(0), (2, 3), why)
    (moved,) = run_op(ctx.node, ctx.opset, source.full(), ())
    ctx.emit(0, ctx.uniform(Labels.of(moved), (2, 3), why))


def move_labels(ctx: Context) -> None:
    """Emit for each output what the op makes of input 0's labels."""
    labels = ctx.labels(0)
    if not labels.varying:
        for index in range(len(ctx.node.output)):
            if ctx.emits(index):
                shape = ctx.out_shape(index)
                ctx.emit(index, Labels(shape, labels.core.reshape(-1)[:1].reshape((1,) * len(shape))))
        return
    parameters = []
    for index in range(1, len(ctx.node.input)):
        value = ctx.value(index)
        if ctx.has(index) and value is None:
            raise NoRule("its parameters are computed")
        parameters.append(value)
    for index, result in enumerate(run_op(ctx.node, ctx.opset, labels.full(), parameters)):
        ctx.emit(index, Labels.of(result))


def run_op(
    node: onnx.NodeProto, opset: int, data: IntArray, parameters: Sequence[npt.NDArray[Any] | None]
) -> list[IntArray]:
    """All outputs of ``node`` at ``data``, by the onnx reference evaluator."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:], copy.output[:]
    copy.input.extend(["data", *("" if value is None else f"p{i}" for i, value in enumerate(parameters))])
    copy.output.extend(f"y{i}" for i in range(len(node.output)))
    feeds = {f"p{i}": value for i, value in enumerate(parameters) if value is not None}
    results = _evaluator(copy.SerializeToString(), opset).run(None, {"data": data, **feeds})
    return [np.asarray(result, np.int64) for result in results]


@lru_cache(maxsize=256)
def _evaluator(serialized: bytes, opset: int) -> ReferenceEvaluator:
    node = onnx.NodeProto.FromString(serialized)
    inputs = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.input if name]
    outputs = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.output]
    graph = onnx.helper.make_graph([node], "labels", inputs, outputs)
    return ReferenceEvaluator(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    )


@rule("Slice")
def slice_(ctx: Context) -> None:
    """Run it; bounds that are computed may cut axes without channels."""
    if all(ctx.is_constant(i) for i in range(1, len(ctx.node.input)) if ctx.has(i)):
        return move_labels(ctx)
    if ctx.has(3) and ctx.integers(3) is None:
        raise NoRule("its axes are computed")
    labels = ctx.labels(0)
    axes = ctx.integers(3) if ctx.has(3) else list(range(ctx.shape(1)[0]))
    named = [ctx.axis(axis, len(labels.shape)) for axis in axes or ()]
    labels = ctx.uniform(labels, named, "it cuts channels at computed bounds")
    return ctx.emit(0, Labels(ctx.out_shape(), labels.core))


@rule("Gather")
def gather(ctx: Context) -> None:
    """Run it with constant indices; computed ones may pick along an axis without channels."""
    if ctx.is_constant(1) and not ctx.is_constant(0):
        return move_labels(ctx)
    labels, picked = ctx.labels(0), len(ctx.shape(1))
    axis = ctx.axis(int(ctx.attribute("axis", 0)), len(labels.shape))
    core = ctx.uniform(labels, [axis], "it picks channels by computed indices").core
    shape = core.shape[:axis] + (1,) * picked + core.shape[axis + 1 :]
    return ctx.emit(0, Labels(ctx.out_shape(), core.reshape(shape)))


@rule("GatherND")
def gather_nd(ctx: Context) -> None:
    """Run it with constant indices; computed ones may pick along axes without channels."""
    if ctx.is_constant(1) and not ctx.is_constant(0):
        return move_labels(ctx)
    labels, indices = ctx.labels(0), ctx.shape(1)
    batch = int(ctx.attribute("batch_dims", 0))
    picked = batch + indices[-1]
    core = ctx.uniform(labels, range(picked), "it picks channels by computed indices").core
    shape = (1,) * (len(indices) - 1) + core.shape[picked:]
    return ctx.emit(0, Labels(ctx.out_shape(), core.reshape(shape)))


@rule("Concat")
def concat(ctx: Context) -> None:
    """Put the labels side by side; constants among the inputs get atoms that only go along."""
    shapes = [ctx.shape(index) for index in range(len(ctx.node.input))]
    rank = len(shapes[0])
    axis = ctx.axis(int(ctx.attribute("axis", 1)), rank)
    moving = {i: ctx.labels(i) for i in range(len(shapes)) if not ctx.is_constant(i)}
    if all(bool((labels.core == DATA).all()) for labels in moving.values()):
        return ctx.emit(0, Labels.data(ctx.out_shape()))  # constants would go along with nothing
    free = {axis, *(a for labels in moving.values() for a in labels.varying)}
    cores = []
    for index, shape in enumerate(shapes):
        if 0 in shape:
            continue
        if index not in moving:
            size = tuple(shape[a] if a in free else 1 for a in range(rank))
            atoms = ctx.atoms.fresh(int(np.prod(size)), removable=False).reshape(size)
            ctx.bind(index, Labels(shape, atoms))
            moving[index] = Labels(shape, atoms)
        cores.append(moving[index].core)
    common = [max((core.shape[a] for core in cores), default=1) for a in range(rank)]
    parts = []
    for index, shape in enumerate(shapes):
        if 0 not in shape:
            common[axis] = shape[axis]
            parts.append(np.broadcast_to(moving[index].core, common))
    if not parts:
        return ctx.emit(0, Labels.data(ctx.out_shape()))
    joined = Labels.of(np.concatenate(parts, axis=axis))
    return ctx.emit(0, Labels(ctx.out_shape(), joined.core))


@rule("Pad")
def pad(ctx: Context) -> None:
    """Padding along channels makes atoms that only go along; other padding takes its slice's label."""
    labels = ctx.labels(0)
    rank = len(labels.shape)
    amounts = ctx.integers(1) if ctx.opset >= 11 else list(ctx.attribute("pads"))
    if amounts is None or (ctx.has(3) and not ctx.is_constant(3)):
        raise NoRule("its amounts are computed")
    axes = [ctx.axis(axis, rank) for axis in ctx.integers(3) or ()] if ctx.has(3) else list(range(rank))
    mode = ctx.attribute("mode", "constant")
    core, computed = labels.core, ctx.has(2) and not ctx.is_constant(2)
    for position, axis in enumerate(axes):
        before, after = amounts[position], amounts[position + len(axes)]
        if core.shape[axis] > 1 and (before or after):
            core = _pad_axis(ctx, core, axis, (before, after), mode, computed)
    ctx.emit(0, Labels(ctx.out_shape(), compact(core)))


def _pad_axis(
    ctx: Context, core: IntArray, axis: int, amounts: tuple[int, int], mode: str, computed: bool
) -> IntArray:
    indices = np.arange(core.shape[axis])
    indices = indices[max(-amounts[0], 0) : len(indices) - max(-amounts[1], 0)]
    grow = (max(amounts[0], 0), max(amounts[1], 0))
    if mode != "constant" and any(grow):
        raise NoRule(f"it pads channels in mode '{mode}'")
    inner = core.take(indices, axis=axis)
    parts = [inner]
    for side, count in enumerate(grow):
        size = tuple(count if a == axis else s for a, s in enumerate(core.shape))
        total = int(np.prod(size))
        atoms = np.full(total, DATA, np.int64) if computed else ctx.atoms.fresh(total, removable=False)
        parts.insert(0 if side == 0 else 2, atoms.reshape(size))
    return np.concatenate(parts, axis=axis)


@rule("Expand")
def expand(ctx: Context) -> None:
    """Copies along a new or widened axis share their source's label; see `Context.spread`."""
    if not ctx.is_constant(1):
        raise NoRule("its target shape is computed")
    ctx.emit(0, ctx.spread(ctx.labels(0), ctx.out_shape()))
