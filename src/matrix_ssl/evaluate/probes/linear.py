"""Multinomial logistic regression on frozen features, solved to convergence.

The problem is convex with a single solution. There is no learning rate or number of epochs to tune, so two encoders
differ only in their features. The only setting is the penalty, which ``penalty.choose_penalty`` can choose.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.probes.inputs import ROWS, check_labelled

_FLOAT64_NUMBERS = 2**22  # up to this size (32 MiB) the standardised features are kept in float64, above in float32
_BLOCK = 2**19  # features multiplied at a time on a CPU: the cache holds them for both products of a step
_DEVICE_BLOCK = 2**26  # the same on other devices
_TOLERANCE = 1e-8  # the search continues until no entry of the gradient of the mean objective is larger
_CONVERGED = 1e-6  # below this the search counts as converged: accuracies no longer change
_ROUGH = 1e-4  # largest gradient entry at or below which float32 values are too coarse to compare
_LEAST_CURVATURE = 1e-12  # relative to the trace: anything below is rounding, which can make a factorisation fail
_ONE_THREAD = 2**21  # numbers below which waking other threads costs more than it gains, 20 times on a busy machine


class Scale(NamedTuple):
    """Mean and standard deviation of every feature, float64 (d,)."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    """A fitted classifier: scores = weight @ ((x - mean) / std) + bias."""

    weight: Tensor  # (classes, d)
    bias: Tensor  # (classes,); negative infinity for a class without training images
    mean: Tensor  # (d,)
    std: Tensor  # (d,)
    iterations: int
    converged: bool  # False if the gradient was still too large when the search stopped

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """Log-odds up to a constant per row: finite features (n, d) -> (n, classes); a softmax gives probabilities.

        Raises:
            DataError: the width of the features is not d.
        """
        if features.shape[1] != len(self.mean):
            raise DataError(f"the classifier was fitted on {len(self.mean)} features, got {features.shape[1]}.")
        return torch.cat([self._scores(rows) for rows in features.split(ROWS)])

    def predict(self, features: Tensor) -> Tensor:
        """The label with the highest score, int64 (n,), the lowest label in a tie; raises as ``scores``."""
        return self.scores(features).argmax(dim=1)

    def _scores(self, features: Tensor) -> Tensor:
        scaled = features.to(self.weight.dtype, copy=True).sub_(self.mean).div_(self.std)
        return torch.addmm(self.bias, scaled, self.weight.T)


@torch.no_grad()
def scale_of(features: Tensor) -> Scale:
    """Mean and population standard deviation of the columns of (n, d), accumulated in float64.

    A constant feature gets the scale 1. A feature is constant if its variance is within the rounding error of its
    computation, by the bound of Chan, Golub and LeVeque (1983) that scikit-learn's ``StandardScaler`` uses.
    """
    n, eps = len(features), torch.finfo(torch.float64).eps
    blocks = features.split(_rows(features))
    mean = torch.stack([rows.sum(dim=0, dtype=torch.float64) for rows in blocks]).sum(dim=0) / n
    centred = (torch.sub(rows, mean) for rows in blocks)
    variance = torch.stack([torch.linalg.vecdot(rows, rows, dim=0) for rows in centred]).sum(dim=0) / n
    constant = variance <= n * eps * variance + (n * mean * eps) ** 2
    return Scale(mean, variance.sqrt().masked_fill(constant, 1.0))


@torch.no_grad()
def fit_logistic_regression(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    l2: float = 1.0,
    scale: Scale | None = None,
    max_iterations: int = 1000,
) -> LogisticRegression:
    """Minimises sum of cross-entropies + l2 / 2 * ||W||^2 over the weights W of standardised features and the biases.

    The biases are not penalised; scikit-learn's C is 1 / l2 (with two classes, scikit-learn has one weight vector
    instead of two, and its penalty has twice the effect). The solver is full-batch L-BFGS (Liu and Nocedal, 1989),
    preconditioned by the curvature at its start, and runs until no entry of the gradient of the objective over n is
    larger than 1e-8. Besides the features it needs one standardised copy of them, in float32 if they have more than 4
    million numbers: the search then multiplies in float32, and continues in float64 if that is needed to come this
    close. The device must support float64 (not MPS).

    Args:
        features: (n, d), any floating-point type.
        labels: integers (n,) in [0, classes). A class without images is never predicted.
        scale: mean and standard deviation for the standardisation; None: those of ``features``.

    Raises:
        ConfigError: ``l2`` is not positive.
        DataError: the features or labels are invalid, or there are fewer than two classes among the labels.
    """
    check_labelled(features, labels)
    return next(
        fit_path(features, labels, classes=classes, penalties=(l2,), scale=scale, max_iterations=max_iterations)
    )


@torch.no_grad()
def fit_path(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    penalties: Sequence[float],
    rows: Tensor | None = None,
    scale: Scale | None = None,
    max_iterations: int = 1000,
    tolerance: float = _TOLERANCE,
) -> Iterator[LogisticRegression]:
    """``fit_logistic_regression`` for several penalties in turn, each search starting at the previous solution.

    A fit is computed when the iterator reaches it. Features and labels are not checked.

    Args:
        rows: indices of the images to fit; None: all. The only copy of the features is the standardised one.
        tolerance: a search ends when no entry of the gradient of the objective over n is larger.
    """
    for l2 in penalties:
        if l2 <= 0:
            raise ConfigError(
                f"l2={l2}: expected a positive penalty, for example 1.0; without one no solution need exist."
            )
    if int(labels.max()) >= classes:
        raise DataError(f"training features: label {int(labels.max())}, but there are {classes} classes from 0.")
    labels = labels.to(features.device) if rows is None else labels.to(features.device)[rows.to(features.device)]
    present, targets = labels.unique(return_inverse=True)
    if len(present) < 2:
        raise DataError(f"every training image has the label {int(present)}: a classifier needs two classes.")
    if scale is None:
        scale = scale_of(features if rows is None else features[rows.to(features.device)])
    mean, std = scale.mean.to(features.device), scale.std.to(features.device)
    x, basis = _standardised(features, rows, mean, std), None
    if len(x) < x.shape[1]:
        # Fewer images than features: the gradient of W lies in the span of the images, and so does the solution. In
        # an orthonormal basis of the span (x = r^T q^T, W = v q^T) the scores and ||W|| = ||v|| are unchanged.
        basis, r = torch.linalg.qr(x.T)
        x = r.T.contiguous()
    solution = x.new_zeros((len(present), x.shape[1] + 1), dtype=torch.float64)
    for l2 in penalties:
        solution, iterations, converged = _minimise(
            x, targets, solution, l2=l2, max_iterations=max_iterations, tolerance=tolerance
        )
        weight = solution.new_zeros(classes, features.shape[1])
        bias = solution.new_full((classes,), -torch.inf)  # the limit of an absent class's bias, which no step reaches
        weight[present] = solution[:, :-1] if basis is None else solution[:, :-1] @ basis.T.double()
        bias[present] = solution[:, -1]
        yield LogisticRegression(weight, bias, mean, std, iterations, converged)


def _standardised(features: Tensor, rows: Tensor | None, mean: Tensor, std: Tensor) -> Tensor:
    """The features of ``rows`` minus the mean, over the deviation; done in blocks so that only one copy is made."""
    rows = torch.arange(len(features)) if rows is None else rows
    dtype = torch.float64 if len(rows) * features.shape[1] <= _FLOAT64_NUMBERS else torch.float32
    scaled = torch.empty(len(rows), features.shape[1], dtype=dtype, device=features.device)
    count = _rows(features)
    for target, chosen in zip(scaled.split(count), rows.to(features.device).split(count), strict=True):
        target.copy_(features[chosen].double().sub_(mean).div_(std))
    return scaled


def _rows(x: Tensor) -> int:
    """Number of rows of (n, d) in a block."""
    return max(1, (_BLOCK if x.device.type == "cpu" else _DEVICE_BLOCK) // x.shape[1])


def _minimise(
    x: Tensor, targets: Tensor, start: Tensor, *, l2: float, max_iterations: int, tolerance: float
) -> tuple[Tensor, int, bool]:
    """Weights and, in the last column, biases (classes, d + 1) for the features ``x``, used as they are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if x.numel() < _ONE_THREAD else threads)
    solution, iterations, largest = start, 0, math.inf
    try:
        for dtype in dict.fromkeys((x.dtype, torch.float64)):
            if largest > tolerance and iterations < max_iterations:
                rest = max_iterations - iterations
                solution, steps = _search(
                    x, targets, solution, l2=l2, dtype=dtype, max_iterations=rest, tolerance=tolerance
                )
                iterations += steps
                largest = float(_objective(solution, x, targets, l2=l2)[1].abs().max())
    finally:
        torch.set_num_threads(threads)
    return solution, iterations, largest <= _CONVERGED


def _search(
    x: Tensor, targets: Tensor, start: Tensor, *, l2: float, dtype: torch.dtype, max_iterations: int, tolerance: float
) -> tuple[Tensor, int]:
    """Runs L-BFGS with products in ``dtype``; returns its end point and number of steps.

    With M = F Fᵀ from ``_curvature`` the variables are V = W F, in which the curvature is close to the identity. Near
    the solution the objective changes by less than float32 resolves, and a line search would fail. There the change is
    computed as the mean of the gradients at both ends times the step, whose error is of third order in the step.
    """
    # SciPy's L-BFGS-B keeps its history in compiled code: five times faster than torch.optim.LBFGS on small problems
    from scipy.optimize import minimize  # slow to import, and only probes need it

    factor = torch.linalg.cholesky(_curvature(x, start, l2=l2))
    inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
    largest, latest = math.inf, (np.zeros(0), 0.0, np.zeros(0))

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal largest, latest
        parameters = torch.from_numpy(flat).to(x.device).view_as(start) @ inverse
        value, by_parameters = _objective(parameters, x, targets, l2=l2, dtype=dtype)
        gradient = (by_parameters @ inverse.mT).cpu().numpy().ravel()
        if dtype == torch.float32 and largest <= _ROUGH:
            value = latest[1] + float((gradient + latest[2]) @ (flat - latest[0])) / 2
        largest, latest = float(by_parameters.abs().max()), (flat.copy(), value, gradient)
        return value, gradient.copy()

    def stop(_: NDArray[np.float64]) -> None:
        if largest <= tolerance:  # at the point evaluated last, which is the one that the search has reached
            raise StopIteration

    options = {
        "maxiter": max_iterations,
        "maxfun": 2 * max_iterations,
        "gtol": 0.0,  # ``stop`` decides, based on the gradient of the weights
        "ftol": 0.0,  # only the gradient tells how far away the solution is
        "maxcor": 20,
    }
    first = (start @ factor).cpu().numpy().ravel()
    result = minimize(objective, first, jac=True, method="L-BFGS-B", callback=stop, options=options)
    return torch.from_numpy(result.x).to(x.device).view_as(start) @ inverse, int(result.nit)


def _curvature(x: Tensor, parameters: Tensor, *, l2: float) -> Tensor:
    """M (d + 1, d + 1), symmetric and positive definite, such that the Hessian over n is about I ⊗ M.

    With probabilities p of k classes M = mean of w x̃ x̃ᵀ + l2 / n I, where x̃ is x with a one appended for the bias,
    and w = Σ p (1 - p) / (k - 1). This is exact if all classes are equally probable, as at the start of a path. The
    mean is over a sample of the images that costs no more than five steps, and is shrunk towards a multiple of I in
    proportion to its sampling error. A penalty at the level of rounding is replaced by a multiple of the trace.

    Reference: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of
        Multivariate Analysis 88, 2004, section 3.2, for the shrinkage.
    """
    (n, d), classes = x.shape, len(parameters)
    count = max(1, min(n, 8 * d, 10 * n * classes // d))
    rows = x[torch.linspace(0, n - 1, count, dtype=torch.float64).long().to(x.device)].double()
    rows = torch.cat([rows, rows.new_ones(count, 1)], 1)
    p = (rows @ parameters.mT).softmax(1)
    rows *= ((p * (1 - p)).sum(1, keepdim=True) / (classes - 1)).sqrt_()
    mean = rows.mT @ rows / count
    middle = mean.diagonal().mean()
    variance = (rows.square().sum(1).square().mean() - mean.square().sum()) / count * (1 - count / n)
    distance = (mean - middle * torch.eye(d + 1).to(mean)).square().sum()
    share = (variance / distance).nan_to_num(0.0).clamp(0, 1)
    mean *= 1 - share
    mean.diagonal().add_(share * middle + (_LEAST_CURVATURE * d * middle).clamp_min(l2 / n))
    return mean


def _objective(
    parameters: Tensor, x: Tensor, targets: Tensor, *, l2: float, dtype: torch.dtype = torch.float64
) -> tuple[float, Tensor]:
    """The objective divided by n, and its gradient, with products in ``dtype`` and sums of them in float64.

    Computed in blocks of rows, so the scores of all images need not fit into memory. Classes are the first dimension of
    the scores, which makes their softmax run along memory, twenty times as fast with ten classes.
    """
    weight, bias = parameters[:, :-1].to(dtype), parameters[:, -1:].to(dtype)
    gradient = torch.zeros_like(parameters)
    gradient[:, :-1] = l2 * parameters[:, :-1]
    value = l2 / 2 * parameters[:, :-1].square().sum()
    for rows, labels in zip(x.split(_rows(x)), targets[None].split(_rows(x), dim=1), strict=True):
        rows = rows.to(dtype)
        log_probability = F.log_softmax(torch.addmm(bias, weight, rows.T), dim=0)
        value -= log_probability.gather(0, labels).sum(dtype=torch.float64)
        error = log_probability.exp_()  # becomes the probabilities minus the one-hot labels
        error.scatter_(0, labels, error.gather(0, labels) - 1)
        gradient[:, :-1] += error @ rows
        gradient[:, -1] += error.sum(dim=1)
    return float(value) / len(x), gradient / len(x)
