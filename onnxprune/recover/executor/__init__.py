"""Runs ONNX graphs in torch, op by op, for training: see `Executor`."""

from onnxprune.recover.executor.executor import Executor
from onnxprune.recover.executor.registry import supported_ops
from onnxprune.recover.executor.weights import trainable_weights

__all__ = ["Executor", "supported_ops", "trainable_weights"]
