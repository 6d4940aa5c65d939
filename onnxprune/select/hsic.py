"""The kernel data term: HSIC lasso, class-wise or with one response.

    K_k = Gaussian kernel of unit k's features, median width;  Kbar_k = H K_k H / |H K_k H|_F
    Q[k,l] = <Kbar_k, Kbar_l>        R[k,c] = <Kbar_k, Lbar_c>

(Yamada et al. 2014; APIB, Guo et al. 2023.) The response of class c is the delta kernel of the
labels, [y_i = y_j], with rows and columns outside class c weighted by ``outside`` (0: only pairs
within the class count), centred and normalised like the others. One response takes the whole delta
kernel. Kernels are never held together: blocks of their rows are formed, centred, multiplied out,
and forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnxprune.errors import UsageError
from onnxprune.select.problem import ArrayLike, SharedQuadratic, as_matrix

_WIDTH_SAMPLES = 256
_CHUNK = 2**23


@dataclass(frozen=True)
class HsicStatistics:
    """Sums over sample blocks; add those of several shards to get those of all their blocks.

    ``quadratic`` (p, p) = <HK_kH, HK_lH>; ``relevance`` (p, C) = a_c' HK_kH a_c with a_c the
    indicator of class c; ``responses`` (C, C) = (a_c' H a_c')^2.
    """

    quadratic: Tensor
    relevance: Tensor
    responses: Tensor

    def __add__(self, other: HsicStatistics) -> HsicStatistics:
        """Statistics of both sets of blocks."""
        return HsicStatistics(
            self.quadratic + other.quadratic,
            self.relevance + other.relevance,
            self.responses + other.responses,
        )

    def classwise(self, *, outside: float = 0.0) -> SharedQuadratic:
        """One response a class, (p, C); a class without samples has a zero column."""
        if not 0.0 <= outside <= 1.0:
            raise UsageError(f"outside = {outside}", hint="the weight of the other classes is in [0, 1]")
        rest, own = outside**2, 1.0 - outside**2
        linear = rest * self.relevance.sum(dim=1, keepdim=True) + own * self.relevance
        energy = (
            rest**2 * self.responses.sum()
            + 2 * rest * own * self.responses.sum(dim=1)
            + own**2 * self.responses.diagonal()
        )
        present = self.responses.diagonal() > 0
        linear = torch.where(present, linear / torch.where(present, energy, 1.0).sqrt(), 0.0)
        return self._term(linear, 0.5 * float(present.sum()))

    def pooled(self) -> SharedQuadratic:
        """One response (p, 1): the delta kernel of the labels (APIB)."""
        energy = float(self.responses.sum())
        linear = self.relevance.sum(dim=1, keepdim=True)
        if energy > 0:
            return self._term(linear / energy**0.5, 0.5)
        return self._term(torch.zeros_like(linear), 0.0)

    def _term(self, linear: Tensor, constant: float) -> SharedQuadratic:
        energy = self.quadratic.diagonal().clamp_min(0.0)
        # A unit that says the same about every sample has no kernel left after centring.
        alive = energy > 1e-20 * energy.max() if len(energy) else energy > 0
        scale = torch.where(alive, energy, 1.0).rsqrt() * alive
        return SharedQuadratic.from_arrays(
            self.quadratic * scale[:, None] * scale,
            linear * scale[:, None],
            constant,
            device=linear.device,
            dtype=linear.dtype,
        )


def hsic_statistics(
    features: ArrayLike,
    labels: npt.ArrayLike,
    classes: int,
    *,
    block: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> HsicStatistics:
    """Accumulate the statistics of ``features`` (n, p, d), or pooled (n, p), with ``labels`` (n,).

    ``block`` splits the samples into class-balanced blocks of about that size and drops the pairs
    across blocks (block HSIC lasso, Climente-Gonzalez et al. 2019): cost n * block * p^2 instead of
    n^2 * p^2. Peak memory is a bounded chunk plus (n, p) row means.
    """
    values = torch.as_tensor(features, dtype=dtype, device=device)
    if values.ndim == 2:
        values = values[:, :, None]
    targets = np.asarray(labels)
    if values.ndim != 3 or targets.shape != (len(values),):
        raise UsageError(
            f"features of shape {tuple(values.shape)} with labels of shape {targets.shape}",
            hint="pass features (n, p, d) or (n, p) and one label a sample",
        )
    if len(targets) and (targets.min() < 0 or targets.max() >= classes):
        raise UsageError(f"labels outside 0..{classes - 1}", hint="pass the number of classes of the data")
    # Unit-major, each unit centred: squared distances then lose little to cancellation.
    units = as_matrix(values.transpose(0, 1), device, dtype)
    units = units - units.mean(dim=1, keepdim=True)
    widths = _median_widths(units)
    labels_tensor = torch.as_tensor(targets.astype(np.int64), device=units.device)
    count = len(units)
    total = HsicStatistics(
        units.new_zeros((count, count)),
        units.new_zeros((count, classes)),
        units.new_zeros((classes, classes)),
    )
    for chosen in _blocks(targets, block):
        index = torch.as_tensor(chosen, device=units.device)
        total = total + _block_statistics(units[:, index], labels_tensor[index], classes, widths)
    return total


def _blocks(labels: npt.NDArray[np.generic], block: int | None) -> list[npt.NDArray[np.int64]]:
    if block is None or block >= len(labels):
        return [np.arange(len(labels))]
    if block < 2:
        raise UsageError(f"blocks of {block} samples", hint="a kernel needs at least two samples")
    parts = -(-len(labels) // block)
    order = np.argsort(labels, kind="stable")
    return [np.sort(order[part::parts]) for part in range(parts)]


def _squared_distances(some: Tensor, all_samples: Tensor) -> Tensor:
    """(p, r, d) against (p, n, d): (p, r, n)."""
    if some.shape[2] == 1:
        return (some - all_samples.transpose(1, 2)).square_()
    squares = all_samples.square().sum(dim=2)[:, None, :] + some.square().sum(dim=2)[:, :, None]
    return torch.baddbmm(squares, some, all_samples.transpose(1, 2), alpha=-2.0).clamp_min_(0.0)


def _median_widths(units: Tensor) -> Tensor:
    """Median squared distance between samples (p,); their mean where more than half coincide."""
    stride = max(1, -(-units.shape[1] // _WIDTH_SAMPLES))
    sample = units[:, ::stride]
    first, second = torch.triu_indices(sample.shape[1], sample.shape[1], 1, device=units.device)
    if not len(first):
        return units.new_ones(len(units))
    widths = []
    for part in torch.split(sample, max(1, _CHUNK // sample.shape[1] ** 2)):
        pairs = _squared_distances(part, part)[:, first, second]
        median, mean = pairs.median(dim=1).values, pairs.mean(dim=1)
        widths.append(torch.where(median > 1e-12 * mean, median, mean))
    width = torch.cat(widths)
    return torch.where(width > 0, width, 1.0)


def _kernel_rows(units: Tensor, widths: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of rows of every unit's kernel: (p, r, n)."""
    count, samples = units.shape[:2]
    step = max(1, _CHUNK // max(1, count * samples))
    for start in range(0, samples, step):
        rows = slice(start, min(start + step, samples))
        distances = _squared_distances(units[:, rows], units)
        yield rows, distances.div_(-2.0 * widths[:, None, None]).exp_()


def _block_statistics(units: Tensor, labels: Tensor, classes: int, widths: Tensor) -> HsicStatistics:
    count, samples = units.shape[:2]
    means = units.new_empty((count, samples))
    for rows, kernel in _kernel_rows(units, widths):
        means[:, rows] = kernel.mean(dim=2)
    # H K H = K - m_i - m_j + m: move half of the grand mean into each.
    means = means - 0.5 * means.mean(dim=1, keepdim=True)
    quadratic = units.new_zeros((count, count))
    relevance = units.new_zeros((count, classes))
    indicator = torch.nn.functional.one_hot(labels, classes).to(units.dtype)
    for rows, kernel in _kernel_rows(units, widths):
        kernel.sub_(means[:, rows, None]).sub_(means[:, None, :])
        flat = kernel.view(count, -1)
        quadratic.addmm_(flat, flat.t())
        same = (labels[rows, None] == labels).to(units.dtype)
        relevance.addmm_(torch.einsum("krn,rn->kr", kernel, same), indicator[rows])
    sizes = indicator.sum(dim=0)
    responses = (torch.diag(sizes) - sizes[:, None] * sizes / max(samples, 1)).square()
    return HsicStatistics(quadratic, relevance, responses)
