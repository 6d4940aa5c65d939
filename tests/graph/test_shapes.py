from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import UsageError
from onnxprune.graph.inference import infer_symbolic
from onnxprune.graph.shapes import infer_concrete
from onnxprune.graph.symbolic import evaluate_sizes
from tests.model_builder import Builder


def with_input(*dims: int | str | None) -> onnx.ModelProto:
    b = Builder()
    b.input((1, 3, 8, 8))
    model = b.model(b.gemm(b.flatten(b.global_pool(b.conv("x", 4, 3, stride=2))), 2))
    del model.graph.input[0].type.tensor_type.shape.dim[:]
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, dims).type.tensor_type.shape
    model.graph.input[0].type.tensor_type.shape.CopyFrom(shape)
    return model


def test_a_dynamic_batch_counts_as_one_and_a_stated_one_stays() -> None:
    model = with_input("n", 3, 8, 8)
    conv = model.graph.node[0].output[0]
    assert infer_concrete(model)[conv] == (1, 4, 4, 4)
    assert infer_symbolic(model)[conv] == ("n", 4, 4, 4)
    assert infer_concrete(with_input(5, 3, 8, 8))[conv] == (5, 4, 4, 4)
    assert infer_concrete(with_input(None, 3, 8, 8))[conv] == (1, 4, 4, 4)


def test_other_dynamic_sizes_are_taken_from_the_caller_or_guessed() -> None:
    model = with_input("n", 3, "h", "w")
    conv = model.graph.node[0].output[0]
    assert infer_concrete(model, {"x": (2, 3, 10, 12)})[conv] == (2, 4, 5, 6)
    assert infer_concrete(model)[conv] == (1, 4, 112, 112)


def test_weights_have_their_shapes_however_big() -> None:
    b = Builder()
    model = b.model(b.gemm(b.input((1, 100)), 50))
    shapes = infer_concrete(model)
    assert shapes[model.graph.node[0].input[1]] == (50, 100)


@pytest.mark.parametrize(
    "given", [{"z": (1, 3, 8, 8)}, {"x": (1, 3, 8)}, {"x": (1, 4, 8, 8)}, {"x": (1, 3, 0, 8)}]
)
def test_shapes_that_do_not_fit_are_refused(given: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(UsageError) as caught:
        infer_concrete(with_input("n", 3, "h", "w"), given)
    assert caught.value.hint


def test_shape_arithmetic_with_names() -> None:
    shapes = {"x": ("n", 3, "h", 7)}
    known = {name: np.array(value, np.object_) for name, value in {"one": 1, "two": [2], "ends": [3]}.items()}

    def sizes(op: str, *inputs: str, **attributes: object) -> list[object] | None:
        node = helper.make_node(op, list(inputs), ["y"], **attributes)
        result = evaluate_sizes(node, shapes, known.get)
        if result is None:
            return None
        known["y"] = result
        return result.ravel().tolist()

    assert sizes("Shape", "x") == ["n", 3, "h", 7]
    assert sizes("Slice", "y", "two", "ends") == ["h"]
    assert sizes("Concat", "y", "two", axis=0) == ["h", 2]
    assert sizes("Gather", "y", "one") == [2]
    assert sizes("Mul", "y", "two") == [4]
    assert sizes("Add", "y", "two") == [6]
    assert sizes("Shape", "x", start=1, end=-1) == [3, "h"]
    assert sizes("Mul", "y", "one") == [3, "h"]
    assert sizes("Div", "y", "two") == [1, "(h Div 2)"]
    assert sizes("Relu", "x") is None
    assert sizes("Gather", "two", "ends") is None
