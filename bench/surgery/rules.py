"""Every op rule, by brute force over node cases: none may be incorrect at 1e-5.

The cases are the onnx package's own and as many of random shapes, groups and opsets. Each gives shapes,
attributes and values of an op that has a rule. Inputs are put behind a mixing MatMul
along a random axis (so that channels arrive there), made constants or left as inputs, at random; outputs are
mixed again along a random axis. The model is set to a random opset at which the op is the same, analysed,
pruned by random plans, and compared with the masked original on signed and on negated data.

*Followed* counts the models in which channels that can go pass the op; where it is 0, the rule only pins.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from bench.surgery.common import Array, Say, session
from bench.surgery.node_cases import cases
from bench.surgery.rule_cases import made_cases
from onnxprune.errors import OnnxPruneError
from onnxprune.graph.analysis import analyze_graph
from onnxprune.graph.check import TOLERANCE, masked
from onnxprune.graph.ops.registry import ruled_ops
from onnxprune.graph.rewrite import rewrite
from onnxprune.io.limits import MAX_OPSET, MIN_OPSET
from tests.strategies import random_plan

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
IR = 10


@dataclass
class Tally:
    """Models of one op."""

    models: int = 0
    not_run: int = 0
    followed: int = 0
    pruned: int = 0
    opsets: set[int] = field(default_factory=set)
    worst: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Wrapped:
    """A node case between mixing layers, built with one random generator."""

    def __init__(self, case: Any, random: np.random.Generator) -> None:
        self.node = onnx.NodeProto()
        self.node.CopyFrom(case.model.graph.node[0])
        self.node.name = "under_test"
        self.opset = _opset(self.node, case.model, random)
        self.random = random
        self.axis = int(random.choice([1, 1, 1, 0, 2, 3]))
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.constants: list[TensorProto] = []
        inputs, results = case_values(case)
        for position, name in enumerate(self.node.input):
            if name:
                self.node.input[position] = self._feed(position, name, inputs[name])
        self.nodes.append(self.node)
        self.outputs = [self._mix_output(name, results[name]) for name in self.node.output if name in results]

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        if self.node.domain:  # onnx's checker does not know its ops
            opsets.append(helper.make_opsetid(self.node.domain, 1))
        result = helper.make_model(graph, opset_imports=opsets, ir_version=IR)
        if not self.node.domain:
            onnx.checker.check_model(result)
        return result

    def _feed(self, position: int, name: str, value: Array) -> str:
        """The case's value as a constant, or data of its type and range that comes from a mixing layer."""
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        movable = value.ndim > 0 and value.size > 0 and (position == 0 or kind in FLOATS)
        choice = self.random.random()
        if not movable or (position > 0 and choice < 0.7):
            return self._constant(value, name)
        self.inputs.append(helper.make_tensor_value_info(f"{name}_in", TensorProto.FLOAT, value.shape))
        x = f"{name}_in"
        if position == 0 or choice < 0.95:
            x, _ = self._mix(x, value.shape, None)
        return self._as_type(x, value, kind)

    def _as_type(self, x: str, value: Array, kind: int) -> str:
        if kind == TensorProto.BOOL:
            return self._node("Greater", [x, self._constant(np.float32(0), "zero")])
        low, high = (float(value.min()), float(value.max())) if kind in FLOATS else (-np.inf, np.inf)
        if kind not in FLOATS:
            x = self._node("Mul", [x, self._constant(np.float32(3), "three")])
            low = 0.0 if np.issubdtype(value.dtype, np.unsignedinteger) else low
        if low >= -1 and high <= 1:
            x = self._node("Mul", [self._node("Tanh", [x]), self._constant(np.float32(0.9), "inside")])
        if low >= 0:
            x = self._node("Abs", [x])
        if low >= 1:
            x = self._node("Add", [x, self._constant(np.float32(1), "one")])
        return x if kind == TensorProto.FLOAT else self._node("Cast", [x], to=kind)

    def _mix(self, x: str, shape: tuple[int, ...], features: int | None) -> tuple[str, list[int]]:
        """A MatMul along a random axis, and the shape: it stays unless ``features`` are asked for."""
        axis = int(self.random.integers(len(shape)))
        if self.random.random() < 0.75:
            axis = min(self.axis, len(shape) - 1)
        order = [*(a for a in range(len(shape)) if a != axis), axis]
        weight = self.random.standard_normal((shape[axis], features or shape[axis])).astype(np.float32)
        last = axis == len(shape) - 1
        x = x if last else self._node("Transpose", [x], perm=order)
        x = self._node("MatMul", [x, self._constant(weight / np.float32(shape[axis] ** 0.5), "mix")])
        x = x if last else self._node("Transpose", [x], perm=np.argsort(order).tolist())
        return x, [weight.shape[1] if a == axis else size for a, size in enumerate(shape)]

    def _mix_output(self, name: str, value: Array) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        x = name if kind == TensorProto.FLOAT else self._node("Cast", [name], to=TensorProto.FLOAT)
        shape = list(value.shape)
        if value.ndim and value.size:
            x, shape = self._mix(x, value.shape, 2)
        return helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)

    def _node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"wrap_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n_{name}", **attributes))
        return name

    def _constant(self, value: Any, base: str) -> str:
        name = f"{base}_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def usable(case: Any, ruled: set[tuple[str, str]]) -> bool:
    """Whether the case is one node of an op with a rule, on tensors that onnxruntime can compare exactly."""
    model = case.model
    node = model.graph.node[0]
    if len(model.graph.node) != 1 or (node.domain, node.op_type) not in ruled:
        return False
    values = [*case.data_sets[0][0], *case.data_sets[0][1]]
    if not all(isinstance(value, np.ndarray | np.generic | TensorProto) for value in values):
        return False
    kinds = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    return not any(
        kind in HALF or kind == TensorProto.STRING or kind > TensorProto.BFLOAT16 for kind in kinds
    )


def case_values(case: Any) -> tuple[dict[str, Array], dict[str, Array]]:
    """Names and values of the case's inputs and outputs."""
    graph, (inputs, outputs) = case.model.graph, case.data_sets[0]
    return tuple(
        {
            value.name: numpy_helper.to_array(item) if isinstance(item, TensorProto) else np.asarray(item)
            for value, item in zip(stated, items, strict=True)
        }
        for stated, items in ((graph.input, inputs), (graph.output, outputs))
    )


def _opset(node: onnx.NodeProto, model: onnx.ModelProto, random: np.random.Generator) -> int:
    """The case's, or another one in which the op is the same."""
    stated = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if node.domain:
        return int(stated)
    since = defs.get_schema(node.op_type, min(stated, MAX_OPSET), "").since_version
    same = [
        version for version in range(max(since, MIN_OPSET), MAX_OPSET + 1)
        if defs.get_schema(node.op_type, version, "").since_version == since
    ]  # fmt: skip
    return int(random.choice(same))


def validate(case: Any, seed: int, tally: Tally) -> None:
    """One random model of a case; what it shows is added to ``tally``."""
    random = np.random.default_rng([seed, *case.name.encode()])
    try:
        wrapped = Wrapped(case, random)
        model = wrapped.model()
        original = session(model)
    except Exception:  # no such model exists, or onnxruntime has no kernel for it
        tally.not_run += 1
        return
    try:
        graph = analyze_graph(model)
        plan = random_plan(graph, seed, (1.0, 0.4, 0.6)[seed % 3])
        pruned = rewrite(graph, plan)
        small, silenced = session(pruned), session(masked(graph, plan))
    except OnnxPruneError as error:
        tally.wrong.append(
            f"{case.name}, opset {wrapped.opset}, seed {seed}: {type(error).__name__}: {error}"
        )
        return
    tally.models += 1
    tally.opsets.add(wrapped.opset)
    tally.followed += any("under_test" in group.nodes for group in graph.groups)
    if plan.keep.all():
        return
    tally.pruned += 1
    feeds = {value.name: random.standard_normal(_shape(value)).astype(np.float32) for value in wrapped.inputs}
    for signed in (feeds, {name: -value for name, value in feeds.items()}):
        try:
            original.run(None, signed)
        except Exception:  # values that the op itself refuses
            return
        error = difference(silenced.run(None, signed), small.run(None, signed))
        tally.worst = max(tally.worst, error)
        if not error <= TOLERANCE:
            tally.wrong.append(f"{case.name}, opset {wrapped.opset}, seed {seed}: relative error {error:.1e}")
            break


def difference(expected: list[Array], found: list[Array]) -> float:
    """Largest relative difference, NaN being equal to NaN."""
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        finite = np.isfinite(one)
        if one.shape != other.shape or not np.array_equal(one[~finite], other[~finite], equal_nan=True):
            return float("inf")
        scale = max(1e-6, float(np.abs(one[finite]).max(initial=0.0)))
        worst = max(worst, float(np.abs(one[finite] - other[finite]).max(initial=0.0)) / scale)
    return worst


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def tallies(only: str, models: int, made: int) -> Iterator[tuple[str, Tally]]:
    """Every op with a rule and what its models showed, ``models`` of them for each case.

    ``made`` is the number of cases that are made of each kind.
    """
    ruled = set(ruled_ops())
    by_op: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for case in (*cases(), *made_cases(made)):
        if usable(case, ruled):
            node = case.model.graph.node[0]
            by_op[node.domain, node.op_type].append(case)
    for domain, op in sorted(ruled):
        name = f"{domain}.{op}" if domain else op
        if only in name:
            tally = Tally()
            for case in by_op[domain, op]:
                for seed in range(models):
                    validate(case, seed, tally)
            yield name, tally


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="ops whose name holds this")
    parser.add_argument("--models", type=int, default=4, help="models of each case [default: 4]")
    parser.add_argument("--made", type=int, default=150, help="cases made of each kind [default: 150]")


def run(options: argparse.Namespace, say: Say) -> int:
    say("| op | models | onnxruntime refuses | pruned | followed | opsets | worst error | incorrect |")
    say("|---|---|---|---|---|---|---|---|")
    wrong: list[str] = []
    total: Counter[str] = Counter()
    for name, tally in tallies(options.only, options.models, options.made):
        wrong += tally.wrong if tally.models else [f"{name}: nothing was tried"]
        total.update(models=tally.models, ops=1, followed=int(tally.followed > 0))
        opsets = f"{min(tally.opsets)} to {max(tally.opsets)}" if tally.opsets else ""
        say(
            f"| {name} | {tally.models} | {tally.not_run} | {tally.pruned} | {tally.followed} | {opsets} "
            f"| {tally.worst:.1e} | {len(tally.wrong)} |"
        )
    say("")
    say(f"{total['ops']} ops, {total['models']} models; {total['followed']} ops are followed")
    for line in wrong:
        say(f"* {line[:300]}")
    return len(wrong)
