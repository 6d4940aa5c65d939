"""What a model's output says about classes: one place where its numbers become class scores.

Most classifiers give a score for each class. Others end in a Sigmoid, of each class (one against all) or of
one value a sample: then the log-odds log(p / (1 - p)) are what compares as other classifiers' scores do. One
value z a sample stands for two classes: class 1 where z is above 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from onnxprune.errors import ModelError
from onnxprune.evaluate.datasets import Dataset
from onnxprune.profile.session import Session
from onnxprune.profile.spec import TensorSpec

if TYPE_CHECKING:
    import torch

FloatArray = npt.NDArray[np.floating[Any]]
Values = TypeVar("Values", FloatArray, "torch.Tensor")

_HALF_STEP: Final = 2.0**-25
"""Half a step of single precision below 1, to which runtimes compute a Sigmoid."""


@dataclass(frozen=True)
class ScoresOutput:
    """The output ``name``, which holds what a classifier says; ``sigmoid`` where it went through one."""

    name: str
    sigmoid: bool = False

    def of(self, values: Values) -> Values:
        """Class scores (n, C), C at least 2, from the output's ``values`` (n, ...), flattened.

        They are the values themselves, or their log-odds behind a Sigmoid. A single value z a sample becomes
        -z/2 and z/2, whose softmax is the sigmoid of z.
        """
        scores: Any = values.reshape(len(values) if values.ndim else 1, -1)
        library: Any = np
        if not isinstance(values, np.ndarray):
            import torch as library
        elif self.sigmoid:
            scores = scores.astype(np.float64)
        if self.sigmoid:
            # Half a step more keeps 0 and 1 finite, and the order. Quantized levels may round beyond 1.
            scores = scores.clip(0.0, 1.0)
            scores = library.log((scores + _HALF_STEP) / (1.0 - scores + _HALF_STEP))
        if scores.shape[1] == 1:
            scores = library.concatenate([-0.5 * scores, 0.5 * scores], axis=1)
        return scores  # type: ignore[no-any-return]  # of the library that the values are of


def scores_output(session: Session, name: str | None = None) -> ScoresOutput:
    """The output that holds the class scores.

    It is the one named, else the first float one of 2 or more axes, else the only float one of one axis,
    which gives one value a sample. Raises ModelError where there is none.
    """
    floats = [spec for spec in session.outputs if spec.dtype.kind == "f"]
    vectors = [spec for spec in floats if _one_value(spec, session.batch)]
    candidates = [spec for spec in floats if len(spec.shape) != 1] or (vectors if len(vectors) == 1 else [])
    if name is not None:
        candidates = [spec for spec in session.outputs if spec.name == name]
    if candidates:
        return ScoresOutput(candidates[0].name, candidates[0].name in session.sigmoids)
    listed = ", ".join(f"{spec.name} ({spec.describe()})" for spec in session.outputs)
    what = f"no output '{name}'" if name is not None else "no output of class scores"
    raise ModelError(f"the model has {what}", hint=f"its outputs: {listed}")


def scores_warnings(session: Session, dataset: Dataset) -> tuple[str, ...]:
    """What the class scores are taken for, where that is not plain: one value a sample, or several axes."""
    output = scores_output(session)
    values = session.run_batched(dataset.arrays([0]).inputs)[output.name]
    if values.size == 1:
        bound = "0.5, behind a Sigmoid," if output.sigmoid else "0"
        return (f"output '{output.name}' gives one value a sample: above {bound} is class 1, else class 0",)
    shape = values.shape[1:]
    if sum(size > 1 for size in shape) < 2:
        return ()
    sizes, classes = " x ".join(map(str, shape)), math.prod(shape)
    return (f"each of the {sizes} scores of output '{output.name}' is taken as a class: {classes:,} in all",)


def _one_value(spec: TensorSpec, batch: int | None) -> bool:
    """Whether the only axis of an output counts samples; class scores of a sample alone may have one too."""
    return len(spec.shape) == 1 and (batch is None or spec.shape[0] in (None, batch))
