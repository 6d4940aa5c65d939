"""From a trained network to an ONNX file as users have them: BatchNorm kept, batch size free."""

from __future__ import annotations

import tempfile
import warnings

import onnx
import torch
from torch import nn

from bench.paper.data import PREPROCESS
from onnxprune.evaluate.preprocess import record_preprocess

OPSET = 17


def to_onnx(model: nn.Module, size: int) -> onnx.ModelProto:
    """The network in evaluation mode, for inputs (n, 3, ``size``, ``size``), preprocessing recorded."""
    model = model.eval().cpu().to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # The newer exporter folds BatchNorm; the older one, which keeps it, warns that it is older.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(1, 3, size, size),), f"{scratch}/model.onnx",
            input_names=["images"], output_names=["scores"],
            dynamic_axes={"images": {0: "n"}, "scores": {0: "n"}},
            opset_version=OPSET, training=torch.onnx.TrainingMode.PRESERVE, dynamo=False,
        )  # fmt: skip
        exported = onnx.load(f"{scratch}/model.onnx")
    record_preprocess(exported, PREPROCESS)
    return exported
