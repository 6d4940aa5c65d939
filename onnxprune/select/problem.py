"""Data terms: convex quadratics in the coefficients B (units x classes).

    f(B) = 1/2 sum_c b_c' Q_c b_c - <R, B> + const

All the engine ever sees of the data is Q (p x p, one for all classes or one for each class) and
R (p x C), so its cost is governed by p and C and not by the number of samples.

Tensors are (p, C) throughout; their memory is class-major (the transpose is contiguous), which is
what matrix products and the per-row proximal operators read fastest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnxprune.errors import UsageError

ArrayLike = Tensor | npt.NDArray[np.floating]

_POWER_ITERATIONS = 30
_EXACT_SPECTRUM = 256
_SKIP_ZEROS = 2**16


class QuadraticTerm(Protocol):
    """What the solver needs of a data term; ``units`` is p, ``classes`` is C."""

    @property
    def units(self) -> int:
        """Number of units p (rows of B)."""

    @property
    def classes(self) -> int:
        """Number of responses C (columns of B)."""

    @property
    def linear(self) -> Tensor:
        """R (p, C): relevance of each unit for each class."""

    @property
    def constant(self) -> float:
        """The value at B = 0."""

    def product(self, coefficients: Tensor) -> Tensor:
        """Column c is Q_c b_c; (p, C) -> (p, C)."""

    def product_from(self, units: Tensor, coefficients: Tensor) -> Tensor:
        """The product for a B whose rows other than ``units`` (w,) are zero; (w, C) -> (p, C)."""

    def restrict(self, units: Tensor) -> QuadraticTerm:
        """The term for a B whose rows other than ``units`` (w,) are zero."""

    def cast(self, dtype: torch.dtype) -> QuadraticTerm:
        """The same term in another precision."""

    def lipschitz(self) -> float:
        """Estimate of the largest eigenvalue of the Q_c; the solver corrects it when too small."""


def norm(values: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Euclidean (Frobenius) norm of all entries or along one axis."""
    result: Tensor = torch.linalg.vector_norm(values, dim=dim, keepdim=keepdim)
    return result


def class_major(values: Tensor) -> Tensor:
    """The same (p, C) tensor with its transpose contiguous in memory."""
    return values.t().contiguous().t()


def as_matrix(values: ArrayLike, device: torch.device | str | None, dtype: torch.dtype) -> Tensor:
    """A finite tensor on the device; raises UsageError where an entry is not finite."""
    tensor = torch.as_tensor(values, dtype=dtype, device=device)
    if not bool(torch.isfinite(tensor).all()):
        raise UsageError(
            "the data term holds values that are not finite",
            hint="look for NaN or infinity in the statistics that it was built from",
        )
    return tensor


def term_value(term: QuadraticTerm, coefficients: Tensor, product: Tensor | None = None) -> float:
    """f(B); ``product`` is Q B where it is at hand."""
    product = term.product(coefficients) if product is None else product
    return float((coefficients * (0.5 * product - term.linear)).sum()) + term.constant


def term_gradient(term: QuadraticTerm, coefficients: Tensor) -> Tensor:
    """The gradient Q B - R, (p, C)."""
    return term.product(coefficients) - term.linear


@dataclass(frozen=True)
class SharedQuadratic:
    """One Q (p, p) for all classes, R (p, C)."""

    quadratic: Tensor
    linear: Tensor
    constant: float = 0.0

    @classmethod
    def from_arrays(
        cls,
        quadratic: ArrayLike,
        linear: ArrayLike,
        constant: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Self:
        """Check shapes and finiteness, symmetrise Q; raises UsageError."""
        matrix = as_matrix(quadratic, device, dtype)
        target = as_matrix(linear, device, dtype)
        if target.ndim == 1:
            target = target[:, None]
        if matrix.ndim != 2 or target.ndim != 2 or tuple(matrix.shape) != (len(target), len(target)):
            raise UsageError(
                f"Q has shape {tuple(matrix.shape)} and R {tuple(target.shape)}",
                hint="a shared quadratic needs Q (p, p) and R (p, C)",
            )
        return cls(0.5 * (matrix + matrix.t()), class_major(target), float(constant))

    @property
    def units(self) -> int:
        """Number of units p."""
        return self.linear.shape[0]

    @property
    def classes(self) -> int:
        """Number of responses C."""
        return self.linear.shape[1]

    def product(self, coefficients: Tensor) -> Tensor:
        """Q B, (p, C); where B is large, its zero rows are skipped."""
        if coefficients.numel() >= _SKIP_ZEROS:
            units = (coefficients != 0).any(dim=1).nonzero()[:, 0]
            if len(units) < 0.9 * len(coefficients):
                return self.product_from(units, coefficients.t().index_select(1, units).t())
        return (coefficients.t() @ self.quadratic).t()

    def product_from(self, units: Tensor, coefficients: Tensor) -> Tensor:
        """Q[:, units] B, (p, C)."""
        return (coefficients.t() @ self.quadratic.index_select(0, units)).t()

    def restrict(self, units: Tensor) -> SharedQuadratic:
        """The term on some of the units."""
        matrix = self.quadratic.index_select(0, units).index_select(1, units)
        linear = self.linear.t().index_select(1, units).t()
        return SharedQuadratic(matrix, linear, self.constant)

    def cast(self, dtype: torch.dtype) -> SharedQuadratic:
        """The same term in another precision."""
        return SharedQuadratic(self.quadratic.to(dtype), self.linear.to(dtype), self.constant)

    def lipschitz(self) -> float:
        """Largest eigenvalue of Q: exact for small p, by power iteration otherwise."""
        if self.units <= _EXACT_SPECTRUM:
            return float(torch.linalg.eigvalsh(self.quadratic)[-1]) if self.units else 0.0
        vector = _start_vector(self.quadratic)
        for _ in range(_POWER_ITERATIONS):
            image = self.quadratic @ vector
            vector = image / norm(image).clamp_min(torch.finfo(image.dtype).tiny)
        return float(norm(self.quadratic @ vector))


@dataclass(frozen=True)
class ClasswiseQuadratic:
    """A Q_c for each class, ``quadratic`` (C, p, p), R (p, C)."""

    quadratic: Tensor
    linear: Tensor
    constant: float = 0.0

    @classmethod
    def from_arrays(
        cls,
        quadratic: ArrayLike,
        linear: ArrayLike,
        constant: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Self:
        """Check shapes and finiteness, symmetrise each Q_c; raises UsageError."""
        matrix = as_matrix(quadratic, device, dtype)
        target = as_matrix(linear, device, dtype)
        if target.ndim != 2 or tuple(matrix.shape) != (target.shape[1], len(target), len(target)):
            raise UsageError(
                f"Q has shape {tuple(matrix.shape)} and R {tuple(target.shape)}",
                hint="a class-wise quadratic needs Q (C, p, p) and R (p, C)",
            )
        return cls(0.5 * (matrix + matrix.transpose(1, 2)), class_major(target), float(constant))

    @property
    def units(self) -> int:
        """Number of units p."""
        return self.linear.shape[0]

    @property
    def classes(self) -> int:
        """Number of responses C."""
        return self.linear.shape[1]

    def product(self, coefficients: Tensor) -> Tensor:
        """Column c is Q_c b_c, (p, C)."""
        return _row_products(coefficients, self.quadratic)

    def product_from(self, units: Tensor, coefficients: Tensor) -> Tensor:
        """Column c is Q_c[:, units] b_c, (p, C)."""
        return _row_products(coefficients, self.quadratic.index_select(1, units))

    def restrict(self, units: Tensor) -> ClasswiseQuadratic:
        """The term on some of the units."""
        block = (units[:, None] * self.units + units).reshape(1, -1).expand(self.classes, -1)
        matrix = self.quadratic.flatten(1).gather(1, block).reshape(self.classes, len(units), len(units))
        linear = self.linear.t().index_select(1, units).t()
        return ClasswiseQuadratic(matrix, linear, self.constant)

    def cast(self, dtype: torch.dtype) -> ClasswiseQuadratic:
        """The same term in another precision."""
        return ClasswiseQuadratic(self.quadratic.to(dtype), self.linear.to(dtype), self.constant)

    def lipschitz(self) -> float:
        """Largest eigenvalue over all Q_c: exact for small problems, by power iteration otherwise."""
        if not self.units or not self.classes:
            return 0.0
        if self.units <= _EXACT_SPECTRUM // 4:
            return float(torch.linalg.eigvalsh(self.quadratic)[:, -1].max())
        vectors = _start_vector(self.quadratic[0])[:, None].expand(-1, self.classes)
        for _ in range(_POWER_ITERATIONS):
            images = self.product(vectors)
            vectors = images / norm(images, dim=0, keepdim=True).clamp_min(torch.finfo(images.dtype).tiny)
        return float(norm(self.product(vectors), dim=0).max())


def _row_products(coefficients: Tensor, rows: Tensor) -> Tensor:
    """Column c is b_c' M_c for ``rows`` M (C, w, p); as rows they take a third of the time of M_c' b_c."""
    return torch.bmm(coefficients.t().unsqueeze(1), rows).squeeze(1).t()


def _start_vector(matrix: Tensor) -> Tensor:
    # A Gram matrix's top eigenvector rarely is orthogonal to its own diagonal plus a constant.
    vector = matrix.diagonal().abs() + matrix.abs().mean()
    return vector / norm(vector).clamp_min(torch.finfo(matrix.dtype).tiny)
