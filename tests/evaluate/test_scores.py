"""Outputs that give one value a sample or went through a Sigmoid, against plain loops over both classes."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from onnxprune.errors import DataError, ModelError
from onnxprune.evaluate.datasets import Dataset, load_dataset
from onnxprune.evaluate.metrics import distribution, evaluate, evaluate_against, fidelity, predict
from onnxprune.evaluate.scores import ScoresOutput, scores_output, scores_warnings
from onnxprune.profile.session import open_session
from tests.binary import HEADS, images, network, outputs, probabilities
from tests.evaluate.models import classifier
from tests.recover.nets import resnet

X, LABELS = images()


def dataset(model: onnx.ModelProto, labels: np.ndarray | None = LABELS) -> Dataset:
    return load_dataset((X, labels), open_session(model, provider="cpu").input)


def damaged(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with other weights in its first layer."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensor = result.graph.initializer[0]
    value = onnx.numpy_helper.to_array(tensor)
    noise = 0.3 * np.random.default_rng(3).standard_normal(value.shape).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(value + noise, tensor.name))
    return result


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("batch", ["N", 1, 7])
def test_figures_are_those_of_a_loop_over_both_classes(head: str, batch: int | str) -> None:
    original, model = network(head), damaged(network(head))
    p, q = (probabilities(head, outputs(each, X)) for each in (original, model))
    correct = agreeing = 0
    divergence = 0.0
    for label, (p0, p1), (q0, q1) in zip(LABELS, p, q, strict=True):
        correct += (q1 > 0.5) == (label == 1)
        agreeing += (p1 > 0.5) == (q1 > 0.5)
        divergence += p0 * math.log(p0 / q0) + p1 * math.log(p1 / q1)
    assert 80 < correct < 150 and 80 < agreeing < 150  # or there would be nothing to tell
    baked = network(head, batch=batch)
    result = evaluate_against(damaged(baked), baked, dataset(baked), batch_size=53, provider="cpu", threads=1)
    assert result.metrics is not None and result.fidelity is not None
    assert (result.metrics.correct_top1, result.metrics.correct_top5) == (correct, None)
    assert result.fidelity.agreeing == agreeing
    assert result.fidelity.kl == pytest.approx(divergence / len(LABELS), rel=3e-4)


@pytest.mark.parametrize("head", HEADS)
def test_predictions_are_the_classes_0_and_1(head: str) -> None:
    model = network(head)
    scores = predict(model, dataset(model, None), provider="cpu", threads=1)
    assert scores.argmax(1).tolist() == [int(one > 0.5) for _, one in probabilities(head, outputs(model, X))]
    assert evaluate(model, dataset(model).with_labels(scores.argmax(1)), provider="cpu").top1 == 100.0


def test_it_makes_no_difference_where_the_sigmoid_is() -> None:
    """To users: a logit, its p, and two classes behind a softmax are the same classifier."""
    model = network("logit, N x 1")
    for head in ("p, N x 1", "logit, N", "p, N"):
        assert fidelity(network(head), model, dataset(model), provider="cpu").kl < 1e-10
    two = classifier(classes=2)
    soft = classifier(classes=2, softmax=True)
    assert fidelity(two, soft, load_dataset((X, None), open_session(two).input), provider="cpu").kl < 1e-10


@settings(deadline=None)
@given(
    values=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 4)),
        # In steps of single precision below 1, which is what runtimes give.
        elements=(st.integers(0, 2**24) | st.sampled_from([0, 1, 2**23, 2**24 - 1, 2**24])).map(
            lambda step: step * 2.0**-24
        ),
    )
)
def test_log_odds_are_finite_and_keep_the_order(values: np.ndarray) -> None:
    scores = ScoresOutput("y", sigmoid=True).of(values)
    assert scores.shape == (len(values), max(2, values.shape[1])) and np.isfinite(scores).all()
    if values.shape[1] == 1:
        assert np.array_equal(scores.argmax(1), values[:, 0] > 0.5)
        np.testing.assert_allclose(distribution(scores)[:, 1], values[:, 0], atol=2.0**-23)
    else:
        assert np.array_equal(np.argsort(scores, 1, kind="stable"), np.argsort(values, 1, kind="stable"))
    tensor = ScoresOutput("y", sigmoid=True).of(torch.from_numpy(values))
    np.testing.assert_allclose(tensor.numpy(), scores, rtol=1e-5, atol=1e-5)


def test_values_stay_what_they_are_where_each_class_has_its_own() -> None:
    values = np.random.default_rng(0).standard_normal((3, 4, 1, 1)).astype(np.float32)
    scores = ScoresOutput("y").of(values)
    assert scores.dtype == np.float32 and np.shares_memory(scores, values)
    assert torch.equal(ScoresOutput("y").of(torch.from_numpy(values)), torch.from_numpy(scores))
    single = ScoresOutput("y").of(np.array([0.0, -2.0, 1.0, np.nan], np.float32))
    assert single.argmax(1)[:3].tolist() == [0, 0, 1] and np.isnan(single[3]).all()


def test_gradients_of_log_odds_reach_what_is_all_but_certain() -> None:
    z = torch.tensor([[-30.0], [-12.0], [0.0], [12.0]], requires_grad=True)
    scores = ScoresOutput("y", sigmoid=True).of(torch.sigmoid(z))
    (slopes,) = torch.autograd.grad((scores[:, 1] - scores[:, 0]).sum(), z)
    np.testing.assert_allclose(slopes[1:, 0].numpy(), 1.0, atol=0.02)
    assert torch.isfinite(slopes).all()


def test_what_one_value_is_taken_for_is_said() -> None:
    said = {head: scores_warnings(open_session(network(head)), dataset(network(head))) for head in HEADS}
    for head in ("logit, N x 1", "logit, N"):
        assert said[head] == ("output 'y' gives one value a sample: above 0 is class 1, else class 0",)
    for head in ("p, N x 1", "p, N", "p, squeezed"):
        assert "above 0.5, behind a Sigmoid, is class 1" in said[head][0]
    assert said["sigmoids, N x 2"] == ()
    with pytest.raises(DataError, match="label 2 is not among the model's 2 classes"):
        evaluate(network("p, N"), dataset(network("p, N"), LABELS * 2), provider="cpu")


def test_an_output_of_one_axis_counts_samples_and_is_alone() -> None:
    def with_more(model: onnx.ModelProto, **axes: list[int | str]) -> onnx.ModelProto:
        for name, shape in axes.items():
            model.graph.node.append(helper.make_node("Neg", ["y"], [name]))
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return model

    assert scores_output(open_session(network("p, N"))) == ScoresOutput("y", sigmoid=True)
    beside = with_more(network("logit, N"), negative=["N"])
    with pytest.raises(ModelError, match="no output of class scores"):
        scores_output(open_session(beside))
    assert scores_output(open_session(beside), "negative") == ScoresOutput("negative")
    # A model of batch 1 may give its class scores without the axis of the batch.
    flat = resnet(batch=1)
    flat.graph.node.append(helper.make_node("Squeeze", [flat.graph.output[0].name], ["flat"]))
    del flat.graph.output[:]
    flat.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, [4]))
    with pytest.raises(ModelError, match="no output of class scores"):
        scores_output(open_session(flat))
