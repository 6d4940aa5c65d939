"""Typed errors: one class for each kind of failure, each with its exit status and a way out."""

from __future__ import annotations


class OnnxPruneError(Exception):
    """Base of all errors that users can cause or mend.

    ``str(error)`` is one line that says what is wrong; ``hint`` says what to do next;
    ``exit_code`` is the status the command line ends with.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(" ".join(message.split()))
        self.hint = " ".join(hint.split())


class UsageError(OnnxPruneError):
    """An option or argument that makes no sense."""

    exit_code = 2


class ModelError(OnnxPruneError):
    """The model is refused: malformed, unsafe, unsupported, or nothing in it can be pruned."""

    exit_code = 3


class NoGradientError(ModelError):
    """The model has an op, or a form of one, that the executor can't run and so can't train through."""


class PlanError(ModelError):
    """A pruning plan does not fit the model it is applied to."""


class BudgetError(OnnxPruneError):
    """A budget or an accuracy bound can't be met; nothing is written."""

    exit_code = 4


class DataError(OnnxPruneError):
    """The calibration or evaluation data can't be used."""

    exit_code = 5


class VerificationError(OnnxPruneError):
    """The pruned model does not compute what the masked original does: a bug of ours, never a user's."""


class RewriteError(OnnxPruneError):
    """A node can't be written as a valid plan asks: a gap of ours between analysis and rewriting."""
