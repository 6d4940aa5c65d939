from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from onnxprune.errors import BudgetError, DataError, ModelError, UsageError
from onnxprune.evaluate.datasets import Dataset, load_dataset
from onnxprune.evaluate.gates import drop_gate, max_disagreement_gate, max_drop_gate
from onnxprune.evaluate.metrics import (
    Evaluation,
    Fidelity,
    Metrics,
    are_probabilities,
    compare_scores,
    count_correct,
    distribution,
    divergences,
    evaluate,
    evaluate_against,
    fidelity,
    predict,
)
from onnxprune.profile.session import open_session
from onnxprune.profile.spec import TensorSpec
from tests.evaluate.models import as_inputs, classifier, pixels, plain_counts, plain_scores

SPEC = TensorSpec("input", np.dtype(np.float32), (None, 3, 8, 8))
IMAGES = pixels(40)
LABELS = np.random.default_rng(2).integers(0, 10, 40)


def dataset(labels: np.ndarray | None = LABELS) -> Dataset:
    return load_dataset((IMAGES, labels), SPEC)


@settings(max_examples=150, deadline=None)
@given(
    scores=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9),
        # Few distinct values, so that ties are common.
        elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0, float("-inf"), float("inf")]),
    ),
    data=st.data(),
)
def test_counts_equal_a_stable_sort(scores: np.ndarray, data: st.DataObject) -> None:
    labels = data.draw(hnp.arrays(np.int64, len(scores), elements=st.integers(0, scores.shape[1] - 1)))
    counted = count_correct(scores, labels)
    top1, top5 = plain_counts(scores, labels)
    assert counted.correct_top1 == top1 == int((scores.argmax(axis=1) == labels).sum())
    assert counted.correct_top5 == (top5 if scores.shape[1] >= 5 else None)
    assert counted.samples == len(scores)


def test_scores_that_are_not_numbers_are_wrong() -> None:
    scores = np.array([[np.nan, 0, 0, 0, 0], [0, 1, 0, 0, np.nan], [1, 0, 0, 0, 0]], dtype=np.float32)
    assert count_correct(scores, np.array([0, 1, 0])) == Metrics(3, 1, 1, 2)
    assert compare_scores(scores, np.nan_to_num(scores)).agreeing == 1
    assert np.isfinite(compare_scores(scores, np.nan_to_num(scores)).kl)


@pytest.mark.parametrize("tail", [(), (1,), (1, 1)])
@pytest.mark.parametrize("batch", ["N", 1, 7])
def test_outputs_of_any_rank_and_batch(tail: tuple[int, ...], batch: int | str) -> None:
    model = classifier(tail=tail if batch == "N" else (), batch=batch)
    expected = plain_counts(plain_scores(classifier(), as_inputs(IMAGES)), LABELS)
    for batch_size in (1, 16, 64):
        metrics = evaluate(model, dataset(), batch_size=batch_size, provider="cpu", threads=1)
        assert (metrics.samples, metrics.correct_top1, metrics.correct_top5) == (40, *expected)


def test_metrics_in_percent() -> None:
    metrics = Metrics(8, 5, 7)
    assert (metrics.top1, metrics.top5) == (62.5, 87.5)
    assert metrics.to_dict() == {"top1": 62.5, "top5": 87.5, "samples": 8}
    assert Metrics(8, 5, None).top5 is None
    assert Fidelity(8, 6, 0.25).to_dict() == {"agreement": 75.0, "kl": 0.25}


def test_four_classes_have_no_top5() -> None:
    assert evaluate(classifier(classes=4), dataset(LABELS % 4), provider="cpu").top5 is None


def test_prediction_is_what_the_model_says() -> None:
    scores = predict(classifier(), dataset(None), batch_size=9, provider="cpu", threads=1)
    expected = plain_scores(classifier(), as_inputs(IMAGES))
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    assert evaluate(classifier(), dataset().with_labels(scores.argmax(1)), provider="cpu").top1 == 100.0


def test_fidelity_against_the_definition() -> None:
    small, original = classifier(seed=1), classifier(seed=0)
    q, p = (plain_scores(model, as_inputs(IMAGES)).astype(np.float64) for model in (small, original))
    result = fidelity(small, original, dataset(None), batch_size=7, provider="cpu")
    assert result.agreeing == int((q.argmax(axis=1) == p.argmax(axis=1)).sum())
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (p, q))
    assert result.kl == pytest.approx(float((p * np.log(p / q)).sum(axis=1).mean()), rel=1e-4)
    same = fidelity(original, original, dataset(None), provider="cpu")
    assert (same.agreement, same.kl) == (100.0, 0.0)


def test_probabilities_are_taken_as_they_are() -> None:
    plain = fidelity(classifier(seed=1), classifier(), dataset(None), provider="cpu")
    soft = fidelity(classifier(seed=1, softmax=True), classifier(softmax=True), dataset(None), provider="cpu")
    assert soft.kl == pytest.approx(plain.kl, rel=1e-3)
    assert soft.agreeing == plain.agreeing
    certain = np.eye(5)
    assert np.array_equal(distribution(certain), certain)
    assert compare_scores(np.roll(certain, 1, axis=0), certain).kl == pytest.approx(-np.log(1e-12))


def test_rows_that_are_not_numbers_or_not_quite_1_leave_the_others_as_they_are() -> None:
    """Probabilities stay probabilities: one odd row must not send all others through a softmax."""
    random = np.random.default_rng(0)
    same = random.dirichlet(np.ones(5), 64)
    broken, rounded = same.copy(), same.copy()
    broken[3, 2] = np.nan
    rounded[7] *= 1.002
    assert are_probabilities(same) and are_probabilities(broken) and are_probabilities(rounded)
    assert not are_probabilities(np.full((3, 4), np.nan)) and not are_probabilities(same + 1.0)
    assert compare_scores(broken, same).kl == 0.0 and compare_scores(broken, same).agreeing == 63
    assert compare_scores(rounded, same).kl == pytest.approx(0.0, abs=1e-4)
    assert np.isnan(divergences(broken, same)).sum() == 1


def test_one_pass_measures_both_models() -> None:
    result = evaluate_against(classifier(seed=1), classifier(), dataset(), batch_size=6, provider="cpu")
    assert result.metrics == evaluate(classifier(seed=1), dataset(), provider="cpu")
    assert result.reference_metrics == evaluate(classifier(), dataset(), provider="cpu")
    assert (
        result.fidelity.agreeing
        == fidelity(classifier(seed=1), classifier(), dataset(), provider="cpu").agreeing
    )
    unlabelled = evaluate_against(classifier(seed=1), classifier(), dataset(None), provider="cpu")
    assert unlabelled.metrics is None and unlabelled.reference_metrics is None
    assert unlabelled.fidelity.agreeing == result.fidelity.agreeing


def several_outputs() -> onnx.ModelProto:
    model = classifier()
    model.graph.node.append(helper.make_node("ArgMax", ["scores"], ["best"], axis=1))
    model.graph.node.append(helper.make_node("Neg", ["scores"], ["worst"]))
    best = helper.make_tensor_value_info("best", TensorProto.INT64, ["N", 1])
    worst = helper.make_tensor_value_info("worst", TensorProto.FLOAT, ["N", 10])
    outputs = [best, model.graph.output[0], worst]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return model


def test_the_first_float_output_or_the_one_named() -> None:
    assert evaluate(several_outputs(), dataset(), provider="cpu") == evaluate(
        classifier(), dataset(), provider="cpu"
    )
    worst = predict(several_outputs(), dataset(), provider="cpu", output="worst")
    np.testing.assert_array_equal(worst, -predict(classifier(), dataset(), provider="cpu"))
    with pytest.raises(ModelError) as caught:
        predict(several_outputs(), dataset(), provider="cpu", output="nope")
    assert "best (N x 1), scores (N x 10), worst (N x 10)" in caught.value.hint


def test_models_and_data_that_have_no_accuracy() -> None:
    with pytest.raises(DataError, match="label 9 is not among the model's 2 classes"):
        evaluate(classifier(classes=1), dataset(), provider="cpu")
    with pytest.raises(ModelError, match="different shapes"):
        fidelity(classifier(classes=9), classifier(), dataset(None), provider="cpu")
    with pytest.raises(DataError, match="no labels"):
        evaluate(classifier(), dataset(None), provider="cpu")
    with pytest.raises(DataError, match="no samples"):
        evaluate(classifier(), dataset().subset([]), provider="cpu")
    with pytest.raises(DataError, match="label 9 is not among the model's 7 classes"):
        evaluate(classifier(classes=7), dataset(), provider="cpu")


class Recorder:
    """A progress observer that remembers what it was told."""

    def __init__(self) -> None:
        self.total = self.done = 0

    @contextmanager
    def stage(self, name: str, total: int):
        self.total = total
        yield self

    def advance(self, steps: int = 1) -> None:
        self.done += steps


def test_progress_counts_samples() -> None:
    watch = Recorder()
    evaluate(open_session(classifier(), provider="cpu"), dataset(), batch_size=16, progress=watch)
    assert (watch.total, watch.done) == (40, 40)


@pytest.mark.parametrize(
    ("before", "after", "points", "passed"),
    [
        (90, 89, 1.0, True),
        (90, 88, 1.0, False),
        (90, 95, 0.0, True),
        (90, 90, 0.0, True),
        (90, 89, 0.999, False),
    ],
)
def test_max_drop_is_counted_exactly(before: int, after: int, points: float, passed: bool) -> None:
    gate = max_drop_gate(Metrics(100, before, None), Metrics(100, after, None), points)
    assert gate.passed is passed
    assert gate.value == before - after
    if passed:
        gate.require()
    else:
        with pytest.raises(BudgetError, match="points lost") as caught:
            gate.require()
        assert caught.value.exit_code == 4


@settings(max_examples=100, deadline=None)
@given(samples=st.integers(1, 50_000), data=st.data())
def test_exactly_the_drop_allowed_passes(samples: int, data: st.DataObject) -> None:
    before = data.draw(st.integers(0, samples))
    after = data.draw(st.integers(0, before))
    points = 100.0 * before / samples - 100.0 * after / samples
    assert max_drop_gate(Metrics(samples, before, None), Metrics(samples, after, None), points).passed
    if after:
        less = Metrics(samples, after - 1, None)
        assert not max_drop_gate(Metrics(samples, before, None), less, points).passed


def test_without_labels_the_drop_is_bounded_by_disagreement() -> None:
    assert max_disagreement_gate(Fidelity(200, 198, 0.1), 1.0).passed
    assert not max_disagreement_gate(Fidelity(200, 197, 0.1), 1.0).passed
    before, after = Metrics(10, 9, None), Metrics(10, 8, None)
    assert drop_gate(Evaluation(after, Fidelity(10, 5, 0.0), before), 10.0).passed
    assert not drop_gate(Evaluation(None, Fidelity(10, 8, 0.0)), 10.0).passed
    with pytest.raises(UsageError):
        drop_gate(Evaluation(after), 1.0)


def test_gates_that_make_no_sense() -> None:
    with pytest.raises(UsageError):
        max_drop_gate(Metrics(10, 5, None), Metrics(11, 5, None), 1.0)
    for points in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError):
            max_disagreement_gate(Fidelity(1, 1, 0.0), points)
