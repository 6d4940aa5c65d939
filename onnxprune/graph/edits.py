"""The edits of a rewriting in progress: what a node's family reads, and what it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.errors import RewriteError
from onnxprune.graph.inference import infer_types
from onnxprune.graph.kept import Kept
from onnxprune.graph.structure import IntArray

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Edits:
    """What the functions read (``model``, ``kept``, ``opset``, the nodes' constants) and what they write.

    ``constants`` maps names of initializers to new values; ``added`` holds initializers that the
    model did not have; ``before`` and ``after`` map a node's name to nodes to insert around it.
    """

    model: onnx.ModelProto
    kept: Kept
    opset: int
    initializers: dict[str, onnx.TensorProto]
    producers: dict[str, onnx.NodeProto]
    names: set[str]
    constants: dict[str, Array] = field(default_factory=dict)
    added: dict[str, Array] = field(default_factory=dict)
    before: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    after: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)

    @cached_property
    def types(self) -> Mapping[str, int]:
        """Element types of the tensors, as far as they are known."""
        return infer_types(self.model)

    def constant(self, node: onnx.NodeProto, position: int) -> Array | None:
        """The value of a constant input; None if it is absent or computed."""
        name = input_name(node, position)
        if not name or name not in self.initializers:
            return None
        return numpy_helper.to_array(self.initializers[name])

    def set_constant(self, node: onnx.NodeProto, position: int, value: Array) -> None:
        """Replace the value of a constant input."""
        self.constants[node.input[position]] = value

    def fresh(self, base: str) -> str:
        """A name that nothing in the model has."""
        name, count = base, 0
        while name in self.names:
            count += 1
            name = f"{base}_{count}"
        self.names.add(name)
        return name

    def add_constant(self, node: onnx.NodeProto, base: str, value: Array) -> str:
        """A new initializer; returns its name."""
        name = self.fresh(f"{node.name}_{base}")
        self.added[name] = value
        return name

    def gather_after(self, node: onnx.NodeProto, axis: int, indices: IntArray) -> None:
        """Insert a Gather of ``indices`` behind ``node``."""
        if node.name in self.after:
            raise mismatch(node, "irregular on two axes")
        self.insert_after(node, "Gather", "indices", indices.astype(np.int64), axis=axis)

    def insert_after(self, node: onnx.NodeProto, op: str, base: str, value: Array, **attributes: Any) -> None:
        """Insert ``op`` of the output and a constant behind ``node``: it takes over the output's name."""
        output = node.output[0]
        node.output[0] = self.fresh(f"{output}_all")
        inputs = [node.output[0], self.add_constant(node, base, value)]
        name = self.fresh(f"{node.name}_{op.lower()}")
        self.after[node.name] = [helper.make_node(op, inputs, [output], name=name, **attributes)]


def input_name(node: onnx.NodeProto, position: int) -> str:
    """Name of an input, "" if it is absent."""
    return node.input[position] if position < len(node.input) else ""


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Value of an attribute."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Give an attribute a value."""
    remove_attribute(node, name)
    node.attribute.append(helper.make_attribute(name, value))


def remove_attribute(node: onnx.NodeProto, name: str) -> None:
    """Drop an attribute if it is there."""
    for position, item in enumerate(node.attribute):
        if item.name == name:
            del node.attribute[position]
            return


def mismatch(node: onnx.NodeProto, why: str) -> RewriteError:
    """The error for a node that can't be brought in line."""
    return RewriteError(
        f"can't rewrite the node {node.name!r} ({node.op_type}): {why}",
        hint="leave its channels alone with --keep, and please report the model's structure",
    )
