"""The contribution data term: fit what the consumers receive, class by class.

Unit k contributes Z_k = W_k * x_k to the consumer's output Y = sum_k Z_k. Over the samples of class c

    1/2 sum_c | Y_c - sum_k B[k,c] Z_k,c |_F^2 / |Y_c|_F^2

is a quadratic in the Gram matrices Q^c[k,l] = <Z_k,c, Z_l,c> alone: the class-wise form of the
reconstruction lasso (He et al., ICCV 2017). Without penalty and with Y_c = sum_k Z_k,c its minimiser
is B = 1, so B tells what share of each unit its class still needs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from onnxprune.errors import UsageError
from onnxprune.select.problem import ArrayLike, ClasswiseQuadratic, SharedQuadratic, as_matrix

_ENERGY_FLOOR = 1e-6
"""Smallest |Y_c|^2 as a share of sum_k |Z_k,c|^2: contributions that cancel are not blown up."""


def contribution_term(
    gram: ArrayLike,
    *,
    cross: ArrayLike | None = None,
    energy: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> ClasswiseQuadratic:
    """One response a class from ``gram`` (C, p, p).

    ``cross`` (p, C) = <Z_k,c, Y_c> and ``energy`` (C,) = |Y_c|^2 default to Y_c = sum_k Z_k,c; give
    them where the target is another (at a join, after a pruned shortcut). ``class_weights`` (C,)
    weighs each class's normalised term. Classes without samples contribute nothing.
    """
    quadratic, linear, total = _sums(gram, cross, energy, device, dtype)
    own = quadratic.diagonal(dim1=1, dim2=2).sum(dim=1)
    present = own > 0
    floor = torch.maximum(total, _ENERGY_FLOOR * own)
    weights = torch.where(present, 1.0 / torch.where(present, floor, 1.0), 0.0)
    if class_weights is not None:
        weights = weights * as_matrix(class_weights, quadratic.device, dtype)
    return ClasswiseQuadratic.from_arrays(
        quadratic * weights[:, None, None],
        linear * weights,
        0.5 * float((weights * total).sum()),
        device=quadratic.device,
        dtype=dtype,
    )


def pooled_contribution_term(
    gram: ArrayLike,
    *,
    cross: ArrayLike | None = None,
    energy: ArrayLike | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> SharedQuadratic:
    """The one-response variant, R (p, 1): all classes' samples in one sum."""
    quadratic, linear, total = _sums(gram, cross, energy, device, dtype)
    everything = quadratic.sum(dim=0)
    floor = max(float(total.sum()), _ENERGY_FLOOR * float(everything.diagonal().sum()))
    weight = 1.0 / floor if floor > 0 else 0.0
    return SharedQuadratic.from_arrays(
        everything * weight,
        linear.sum(dim=1, keepdim=True) * weight,
        0.5 * weight * float(total.sum()),
        device=quadratic.device,
        dtype=dtype,
    )


def _sums(
    gram: ArrayLike,
    cross: ArrayLike | None,
    energy: ArrayLike | None,
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    quadratic = as_matrix(gram, device, dtype)
    if quadratic.ndim != 3 or quadratic.shape[1] != quadratic.shape[2]:
        raise UsageError(f"Gram matrices of shape {np.shape(gram)}", hint="pass an array (classes, p, p)")
    linear = quadratic.sum(dim=2).t() if cross is None else as_matrix(cross, quadratic.device, dtype)
    total = quadratic.sum(dim=(1, 2)) if energy is None else as_matrix(energy, quadratic.device, dtype)
    if linear.shape != (quadratic.shape[1], quadratic.shape[0]) or total.shape != quadratic.shape[:1]:
        raise UsageError(
            f"cross {tuple(linear.shape)} and energy {tuple(total.shape)} do not fit Gram matrices "
            f"of shape {tuple(quadratic.shape)}",
            hint="cross is (p, classes), energy (classes,)",
        )
    return quadratic, linear, total.clamp_min(0.0)
