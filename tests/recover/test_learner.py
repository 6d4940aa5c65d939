"""Shares of a batch teach what the whole batch teaches; layers in half precision run behind every op."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from onnxprune.evaluate.datasets import Batch
from onnxprune.evaluate.scores import scores_output
from onnxprune.profile.session import open_session
from onnxprune.recover.executor import Executor
from onnxprune.recover.training.distill import Objective, Teacher
from onnxprune.recover.training.learner import Learner
from onnxprune.recover.training.precision import mixed_precision
from onnxprune.recover.training.workers import SMALLEST_SHARE, Workers
from tests.recover.op_cases import CASES, Case
from tests.recover.test_finetune import damaged, data, net


def activation(case: Case) -> tuple[str, np.ndarray] | None:
    """The first input that a layer could give, with its value."""
    for name, value in case.model(case.opsets[-1])[1].items():
        return (name, value) if value.ndim and np.isfinite(value).all() else None
    return None


BEHIND_LAYERS = [
    pytest.param(case, id=case.label(case.opsets[-1])) for case in CASES if activation(case) is not None
]


def learner(workers: Workers, *, half: bool = False) -> Learner:
    model = net()
    session = open_session(model, provider="cpu", threads=1)
    teacher = Teacher(session, scores_output(session), ())
    return Learner(Executor(damaged(model)), teacher, Objective(4.0, 0.0, 0.5), workers, None, half)


def batch(samples: int) -> Batch:
    inputs = data(net(), samples).arrays().inputs
    return Batch(inputs, np.arange(samples) % 4)


def test_threads_go_to_shares_first_and_to_kernels_where_shares_would_be_too_small() -> None:
    assert [(w.count, w.kernel_threads) for w in (Workers(4, 64), Workers(16, 64), Workers(4, 1))] == [
        (4, 1), (8, 2), (1, 4),
    ]  # fmt: skip


def test_shares_cover_the_batch_in_order_and_torch_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    with Workers(3, 64) as workers:
        assert workers.over(50, lambda share: torch.get_num_threads()) == [1, 1, 1]
        for samples in (1, SMALLEST_SHARE, 3 * SMALLEST_SHARE - 1, 50):
            shares = workers.over(samples, lambda share: share)
            covered = [index for share in shares for index in range(share.start, share.stop)]
            assert covered == list(range(samples))
            assert min(share.stop - share.start for share in shares) >= min(SMALLEST_SHARE, samples)
    assert torch.get_num_threads() == before


def test_shares_teach_what_the_whole_batch_teaches() -> None:
    samples = batch(29)
    with Workers(1, 1) as one, Workers(3, 64) as three:
        loss, gradients = learner(one).gradients(samples)
        shared_loss, shared = learner(three).gradients(samples)
        logits = [learner(each).logits([samples]) for each in (one, three)]
    assert shared_loss == pytest.approx(loss, rel=1e-5)
    assert len(gradients) > 5
    for whole, sum_of_shares in zip(gradients, shared, strict=True):
        assert whole is not None and sum_of_shares is not None
        torch.testing.assert_close(sum_of_shares, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)


def test_half_precision_gives_nearly_the_same_gradients_in_single_precision() -> None:
    samples = batch(32)
    with Workers(1, 32) as workers:
        (loss, exact), (half_loss, half) = (
            learner(workers, half=flag).gradients(samples) for flag in (False, True)
        )
        assert torch.equal(*(learner(workers, half=flag).logits([samples]) for flag in (False, True)))
    assert half_loss != loss and half_loss == pytest.approx(loss, rel=0.05)
    for want, got in zip(exact, half, strict=True):
        assert want is not None and got is not None and got.dtype == torch.float32
        assert float((got - want).norm()) < 0.1 * float(want.norm())


def behind_a_layer(model: onnx.ModelProto, name: str, size: int) -> onnx.ModelProto:
    """The one-node model with a layer that changes nothing, x I, before its input ``name``."""
    node = model.graph.node[0]
    names = ["out" if each == name else each for each in node.input]
    del node.input[:]
    node.input.extend(names)
    model.graph.node.insert(0, helper.make_node("MatMul", [name, "identity"], ["out"]))
    model.graph.initializer.append(numpy_helper.from_array(np.eye(size, dtype=np.float32), "identity"))
    return model


@pytest.mark.parametrize("case", BEHIND_LAYERS)
def test_every_op_takes_what_a_layer_in_half_precision_gives(case: Case) -> None:
    """Activations are bfloat16 then, weights and constants are not."""
    model, feeds = case.model(case.opsets[-1])
    found = activation(case)
    assert found is not None
    name, value = found
    values = {each: torch.from_numpy(array) for each, array in feeds.items()}
    want = Executor(model, trainable=())(values)
    executor = Executor(behind_a_layer(model, name, value.shape[-1]), trainable=())
    with mixed_precision(torch.device("cpu"), True):
        got = executor(values)
    for output, exact in want.items():
        expected, actual = exact.double().numpy(), got[output].double().numpy()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=0.05 * np.abs(expected).max(initial=1.0))
