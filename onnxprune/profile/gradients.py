"""First-order importance of units: what the loss would do if a unit were gone (Molchanov et al.).

With a mask of ones on the input channels of a unit's consumers, the loss's derivative by the unit's
mask is sum_c <W_c, dL/dW_c> over those channels, W_c being the weights that read channel c. The
importance is its square, averaged over batches (CVPR 2019, with consumers in place of producers).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.errors import ModelError
from onnxprune.evaluate.datasets import Dataset
from onnxprune.evaluate.metrics import are_probabilities, check_labels
from onnxprune.evaluate.scores import ScoresOutput, scores_output
from onnxprune.graph.structure import FIXED, Group, Layer, PruningGraph
from onnxprune.graph.weights import Constants, FloatArray
from onnxprune.profile.providers import algebra_device
from onnxprune.profile.session import open_session
from onnxprune.progress import Progress
from onnxprune.recover.executor import Executor

BATCH = 16
"""Samples whose gradients are summed before they are squared, where the model leaves it free."""

_SMALLEST = 1e-12


def collect_importance(
    graph: PruningGraph,
    groups: Sequence[Group],
    dataset: Dataset,
    *,
    provider: str = "auto",
    threads: int | None = None,
    progress: Progress,
) -> dict[str, FloatArray]:
    """Importance (p,) of each group's units, by group name, for the cross entropy with the labels.

    Where the data has no labels, the model's own predictions stand in. Raises ModelError where the
    model holds an op that has no gradient here, DataError for labels that are not the model's classes.
    """
    session = open_session(graph.model, provider=provider, threads=threads)
    scores, size = scores_output(session), session.batch or BATCH
    readers = [graph.layer(name) for name in dict.fromkeys(n for group in groups for n in group.consumers)]
    constants = Constants(graph.model)
    if any(constants.quantized(layer.weight) for layer in readers):
        raise ModelError(
            "taylor needs gradients by the weights, and some are stored quantized",
            hint="take another --method",
        )
    network = _network(
        graph.model, [layer.weight for layer in readers], scores.name, algebra_device(session.provider)
    )
    total, batches = np.zeros(graph.unit_count), 0
    with progress.stage("gradients", len(dataset)) as stage:
        for batch in dataset.batches(size):
            count = len(batch.inputs)
            # A model of fixed batch takes whole ones: samples repeat, and count once.
            filled = batch.inputs if session.batch is None else batch.inputs[np.arange(size) % count]
            logits = _logits(scores, network(torch.from_numpy(filled))[scores.name])[:count]
            labels = logits.argmax(1)
            if batch.labels is not None:
                check_labels(batch.labels, logits.shape[1])
                labels = torch.from_numpy(batch.labels).to(logits.device)
            network.zero_grad()
            torch.autograd.backward(functional.cross_entropy(logits, labels))
            total += _of_units(graph, readers, network) ** 2
            batches += 1
            stage.advance(count)
    return {group.name: total[group.units] / max(batches, 1) for group in groups}


def _network(model: onnx.ModelProto, weights: Sequence[str], scores: str, device: torch.device) -> Executor:
    try:
        return Executor(model, trainable=weights, outputs=[scores], device=device)
    except ModelError as error:
        raise ModelError(
            f"taylor needs gradients, and {error}", hint="take another --method; the others need none"
        ) from error


def _logits(output: ScoresOutput, values: Tensor) -> Tensor:
    scores = output.of(values.float())
    return scores.clamp_min(_SMALLEST).log() if are_probabilities(scores.detach().cpu().numpy()) else scores


def _of_units(graph: PruningGraph, readers: Sequence[Layer], network: Executor) -> FloatArray:
    """The loss's derivative by each unit's mask (unit_count,)."""
    slopes = np.zeros(graph.unit_count)
    for layer in readers:
        weight = network.weights[layer.weight]
        if weight.grad is None:
            continue
        channels = _by_channel(layer, (weight.detach() * weight.grad).double().cpu().numpy())
        prunable = layer.in_units != FIXED
        np.add.at(slopes, layer.in_units[prunable], channels[prunable])
    return slopes


def _by_channel(layer: Layer, values: FloatArray) -> FloatArray:
    """Values of a weight's shape summed over all but its input channels (C_in,)."""
    if layer.op == "Conv":
        parts = values.reshape(layer.groups, -1, *values.shape[1:2], int(np.prod(values.shape[2:])))
        return np.asarray(parts.sum((1, 3)).ravel())
    return np.asarray(np.moveaxis(values, layer.weight_in_axis, 0).reshape(len(layer.in_units), -1).sum(1))
