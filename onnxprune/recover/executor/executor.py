"""Running an ONNX graph in torch, op by op, so that its weights can be trained.

The graph is not converted: nodes run in their order, on the table of ops in ``executor.ops``, and
trained weights are put back into the same graph. Sizes and indices that the graph computes are int64 on
the CPU; half precision is computed in single.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx
import torch
from onnx import AttributeProto, helper, inliner
from torch import Tensor, nn

from onnxprune.errors import ModelError, NoGradientError, UsageError
from onnxprune.recover.executor import ops as _ops  # noqa: F401  # registers the ops
from onnxprune.recover.executor.fuse import ConvBatchNorm
from onnxprune.recover.executor.registry import Call, Op, find_op, supported_ops
from onnxprune.recover.executor.weights import constant_tensors, read_tensor, trainable_weights, write_tensor
from onnxprune.recover.memory import is_too_little_memory


@dataclass(frozen=True)
class _Step:
    """One node, or a fused pair: what to call on which values, and which values nobody needs after it."""

    function: Op
    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    release: tuple[str, ...] = ()


class Executor(nn.Module):
    """An ONNX model as a torch module.

    Its parameters are the weights, ``weights[name]`` being the one of that initializer.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        trainable: Iterable[str] | Literal["weights"] = "weights",
        outputs: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepare to run ``model``, which is not changed.

        ``trainable`` names the constants to make parameters of (default: see `trainable_weights`).
        ``outputs`` names the tensors to compute, any of the graph (default: the model's outputs).
        ``dtype`` is what floats of at most 32 bits are computed in.

        Raises NoGradientError where an op, or a form of it, is not supported, ModelError where a tensor is
        unknown.
        """
        super().__init__()
        self.model = model
        self.device = torch.device(device)
        self._dtype = dtype
        flat = inliner.inline_local_functions(model) if model.functions else model
        tensors = constant_tensors(flat)
        self.inputs = tuple(value.name for value in flat.graph.input if value.name not in tensors)
        self.outputs = tuple(outputs or (value.name for value in flat.graph.output))
        names = trainable_weights(model) if trainable == "weights" else tuple(trainable)
        nodes = _needed(flat, self.outputs, {*self.inputs, *tensors})
        read = {name for node in nodes for name in node.input}
        self.weights: dict[str, nn.Parameter] = {}
        self._constants: dict[str, Tensor] = {}
        for name in names:
            if name not in tensors:
                raise UsageError(f"the model has no constant '{name}'", hint="name initializers")
            if name in read:
                value = _laid_out(read_tensor(tensors[name], dtype).to(self.device))
                self.weights[name] = nn.Parameter(value)
                self.register_parameter(f"weight_{len(self.weights)}", self.weights[name])
        for name in tensors:
            if name in read | set(self.outputs) and name not in self.weights:
                value = read_tensor(tensors[name], dtype)
                self._constants[name] = value.to(self.device) if value.is_floating_point() else value
        steps = [self._step(flat, node) for node in nodes if node.output[0] not in tensors]
        self._steps = _with_releases(_fused(self._folded(steps), self.outputs, self._constants), self.outputs)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on the model's one input, or on inputs by name; gives ``outputs`` by name."""
        given = inputs if isinstance(inputs, Mapping) else {self.inputs[0]: inputs}
        values: dict[str, Tensor] = {**self._constants, **self.weights}
        for name in self.inputs:
            value = given[name].to(self.device)
            values[name] = _laid_out(value.to(self._dtype) if _is_small_float(value) else value)
        for step in self._steps:
            self._run(step, values)
            for name in step.release:
                del values[name]
        return {name: values[name] for name in self.outputs}

    def write_back(self, values: Mapping[str, Tensor] | None = None) -> onnx.ModelProto:
        """A copy of the model with the current weights, or with ``values`` by name, in place of its own."""
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        tensors = constant_tensors(result)
        for name, value in (self.weights if values is None else values).items():
            write_tensor(tensors[name], value)
        return result

    def _step(self, model: onnx.ModelProto, node: onnx.NodeProto) -> _Step:
        domain = "" if node.domain == "ai.onnx" else node.domain
        opset = next((e.version for e in model.opset_import if e.domain in (domain, domain or "ai.onnx")), 1)
        function = find_op(domain, node.op_type, opset)
        if function is None:
            kind = f"{domain}.{node.op_type}" if domain else node.op_type
            elsewhere = "; or export for a newer opset" if (domain, node.op_type) in supported_ops() else ""
            raise NoGradientError(
                f"there are no gradients through {kind} of opset {opset} ('{node.name or node.output[0]}')",
                hint=f"use --recover closed-form, which does without where it must{elsewhere}",
            )
        attributes = {entry.name: self._attribute(entry) for entry in node.attribute}
        outputs = tuple(node.output)
        while outputs and not outputs[-1]:
            outputs = outputs[:-1]
        call = Call(node.name or outputs[0], node.op_type, opset, len(outputs), attributes, self._dtype)
        return _Step(function, call, tuple(node.input), outputs)

    def _attribute(self, entry: AttributeProto) -> Any:
        if entry.type == AttributeProto.TENSOR:
            return read_tensor(entry.t, self._dtype)
        value = helper.get_attribute_value(entry)
        return value.decode() if isinstance(value, bytes) else value

    def _run(self, step: _Step, values: dict[str, Tensor]) -> None:
        given = _together([values[name] if name else None for name in step.inputs])
        try:
            result = step.function(step.call, *given)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if is_too_little_memory(error):
                raise  # no reason to go without gradients
            raise step.call.unsupported(str(error).split("\n", 1)[0] or type(error).__name__) from error
        for name, value in zip(
            step.outputs, result if isinstance(result, tuple) else (result,), strict=False
        ):
            if name:
                values[name] = value

    def _folded(self, steps: list[_Step]) -> list[_Step]:
        """The steps that depend on an input or a weight; the others are run now, once."""
        rest = []
        for step in steps:
            if all(name in self._constants for name in step.inputs if name):
                with torch.no_grad():
                    self._run(step, self._constants)
            else:
                rest.append(step)
        return rest


def _needed(model: onnx.ModelProto, outputs: Sequence[str], known: set[str]) -> list[onnx.NodeProto]:
    """Nodes that ``outputs`` depend on, in the graph's order."""
    made = {name for node in model.graph.node for name in node.output if name}
    for name in outputs:
        if name not in made and name not in known:
            raise ModelError(f"the model has no tensor named '{name}'", hint="names are case-sensitive")
    needed = set(outputs)
    kept = []
    for node in reversed(model.graph.node):
        if any(name in needed for name in node.output):
            needed.update(name for name in node.input if name)
            kept.append(node)
    return kept[::-1]


def _fused(steps: list[_Step], outputs: Sequence[str], constants: Mapping[str, Tensor]) -> list[_Step]:
    """Conv and the frozen BatchNormalization that alone reads it become one step."""
    readers: dict[str, list[int]] = {}
    for index, step in enumerate(steps):
        for name in step.inputs:
            readers.setdefault(name, []).append(index)
    result: list[_Step | None] = list(steps)
    for index, step in enumerate(steps):
        if step.call.op != "Conv" or step.outputs[0] in outputs or len(readers.get(step.outputs[0], ())) != 1:
            continue
        place = readers[step.outputs[0]][0]
        norm = steps[place]
        frozen = norm.call.op == "BatchNormalization" and norm.inputs[0] == step.outputs[0]
        if not frozen or norm.call.outputs > 1 or norm.call.integer("training_mode", 0):
            continue
        if not norm.call.integer("spatial", 1) or any(name not in constants for name in norm.inputs[3:]):
            continue
        bias = step.inputs[2] if len(step.inputs) > 2 else ""
        function = ConvBatchNorm(norm.call.number("epsilon", 1e-5))
        inputs = (*step.inputs[:2], bias, *norm.inputs[1:])
        result[index] = None
        result[place] = replace(step, function=function, inputs=inputs, outputs=norm.outputs)
    return [step for step in result if step is not None]


def _with_releases(steps: list[_Step], outputs: Sequence[str]) -> list[_Step]:
    """Each step with the values that it is the last to need."""
    made = {name for step in steps for name in step.outputs if name}
    later = set(outputs)
    result = []
    for step in reversed(steps):
        gone = {name for name in (*step.inputs, *step.outputs) if name in made and name not in later}
        later.update(step.inputs)
        result.append(replace(step, release=tuple(sorted(gone))))
    return result[::-1]


def _together(values: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The inputs of a node, floats and masks moved to the device that any of them is on.

    What shape arithmetic makes stays on the CPU until it meets activations; sizes and indices do for good.
    """
    devices = {value.device for value in values if value is not None and value.device.type != "cpu"}
    if not devices:
        return list(values)
    (device,) = devices
    return [
        value.to(device)
        if value is not None and (value.is_floating_point() or value.dtype == torch.bool)
        else value
        for value in values
    ]


def _is_small_float(value: Tensor) -> bool:
    return value.is_floating_point() and value.dtype != torch.float64


def _laid_out(value: Tensor) -> Tensor:
    """Images and their kernels with channels innermost, which both oneDNN and cuDNN prefer."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
