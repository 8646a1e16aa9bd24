"""Multinomial logistic regression on frozen features, solved to convergence.

A convex problem with one solution: no learning rate and no epochs to tune, so that two encoders differ by their
features only. Its one setting is the penalty, which ``penalty.choose_penalty`` can choose.
"""

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

_FLOAT64_NUMBERS = 2**27  # up to this size (1 GiB) the standardised features are kept in float64, above in float32
_TOLERANCE = 1e-8  # the search continues until no entry of the gradient of the mean objective is larger
_CONVERGED = 1e-6  # and counts as converged from here: no accuracy changes below
_ONE_THREAD = 2**21  # numbers below which waking other threads costs more than they give, twenty-fold on a busy machine


class Scale(NamedTuple):
    """Mean and standard deviation of every feature, float64 (d,)."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    """A fitted classifier: scores = weight @ ((x - mean) / std) + bias."""

    weight: Tensor  # (classes, d)
    bias: Tensor  # (classes,); minus infinity for a class without training images
    mean: Tensor  # (d,)
    std: Tensor  # (d,)
    iterations: int
    converged: bool  # false: the gradient was still too large when the search stopped

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """Log-odds up to a constant a row: finite features (n, d) -> (n, classes). A softmax makes them probabilities.

        Raises:
            DataError: the width of the features is not d.
        """
        if features.shape[1] != len(self.mean):
            raise DataError(f"the classifier was fitted on {len(self.mean)} features, got {features.shape[1]}.")
        return torch.cat([self._scores(rows) for rows in features.split(ROWS)])

    def predict(self, features: Tensor) -> Tensor:
        """The label of the highest score, int64 (n,); the lowest label of equal ones. Raises as ``scores``."""
        return self.scores(features).argmax(dim=1)

    def _scores(self, features: Tensor) -> Tensor:
        scaled = features.to(self.weight.dtype, copy=True).sub_(self.mean).div_(self.std)
        return torch.addmm(self.bias, scaled, self.weight.T)


@torch.no_grad()
def scale_of(features: Tensor) -> Scale:
    """Mean and standard deviation (of a population) of the columns of (n, d), accumulated in float64.

    A constant feature gets the scale 1. Constant means a variance within the rounding error of its computation, the
    bound of Chan, Golub and LeVeque (1983) that scikit-learn's ``StandardScaler`` uses.
    """
    n, eps = len(features), torch.finfo(torch.float64).eps
    blocks = features.split(ROWS)
    mean = torch.stack([rows.sum(dim=0, dtype=torch.float64) for rows in blocks]).sum(dim=0) / n
    variance = torch.stack([(rows.double() - mean).square_().sum(dim=0) for rows in blocks]).sum(dim=0) / n
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

    The biases carry no penalty; scikit-learn's C is 1 / l2 (with two classes scikit-learn has one weight vector, not
    two, and its penalty counts twice as much). Full-batch L-BFGS (Liu and Nocedal, 1989) in float64, until no entry of
    the gradient of the objective over n is larger than 1e-8. Beside the features it needs one standardised copy of
    them, in float32 where that saves more than 1 GiB. Needs a device with float64 (not MPS).

    Args:
        features: (n, d), any floating-point type.
        labels: integers (n,) in [0, classes). A class without images is never predicted.
        scale: mean and standard deviation to standardise with; None: those of ``features``.

    Raises:
        ConfigError: ``l2`` is not positive.
        DataError: features or labels that cannot be used, or fewer than two classes among the labels.
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
    """``fit_logistic_regression`` for several penalties in turn, each search starting at the solution before.

    A fit is computed when the iterator reaches it. Features and labels are not checked.

    Args:
        rows: indices of the images to fit; None: all. Features are copied once, already standardised.
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
        bias = solution.new_full((classes,), -torch.inf)  # the limit of its bias, which would never be reached by steps
        weight[present] = solution[:, :-1] if basis is None else solution[:, :-1] @ basis.T.double()
        bias[present] = solution[:, -1]
        yield LogisticRegression(weight, bias, mean, std, iterations, converged)


def _standardised(features: Tensor, rows: Tensor | None, mean: Tensor, std: Tensor) -> Tensor:
    """The features of ``rows`` less the mean over the deviation; by rows, so that one copy of them is made, not two."""
    rows = torch.arange(len(features)) if rows is None else rows
    dtype = torch.float64 if len(rows) * features.shape[1] <= _FLOAT64_NUMBERS else torch.float32
    scaled = torch.empty(len(rows), features.shape[1], dtype=dtype, device=features.device)
    for target, chosen in zip(scaled.split(ROWS), rows.to(features.device).split(ROWS), strict=True):
        target.copy_(features[chosen]).sub_(mean).div_(std)
    return scaled


def _minimise(
    x: Tensor, targets: Tensor, start: Tensor, *, l2: float, max_iterations: int, tolerance: float
) -> tuple[Tensor, int, bool]:
    """Weights and, in the last column, biases (classes, d + 1) for the features ``x`` as they are."""
    # SciPy's L-BFGS-B keeps its history in compiled code: on small problems five times faster than torch.optim.LBFGS
    from scipy.optimize import minimize  # slow to import, and only probes need it

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = torch.from_numpy(flat).to(x.device).view_as(start)
        value, gradient = _objective(parameters, x, targets, l2=l2)
        return value, gradient.cpu().numpy().ravel()

    options = {
        "maxiter": max_iterations,
        "maxfun": 2 * max_iterations,
        "gtol": tolerance,
        "ftol": 0.0,  # only the gradient says how far the solution is
        "maxcor": 20,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if x.numel() < _ONE_THREAD else threads)
    try:
        result = minimize(objective, start.cpu().numpy().ravel(), jac=True, method="L-BFGS-B", options=options)
    finally:
        torch.set_num_threads(threads)
    converged = bool(np.abs(result.jac).max() <= _CONVERGED)
    return torch.from_numpy(result.x).to(x.device).view_as(start), int(result.nit), converged


def _objective(parameters: Tensor, x: Tensor, targets: Tensor, *, l2: float) -> tuple[float, Tensor]:
    """The objective divided by n, and its gradient; by rows, so that the scores of all images need not fit."""
    weight, bias = parameters[:, :-1], parameters[:, -1]
    gradient = torch.zeros_like(parameters)
    gradient[:, :-1] = l2 * weight
    value = l2 / 2 * weight.square().sum()
    for rows, labels in zip(x.split(ROWS), targets.split(ROWS), strict=True):
        rows = rows.double()
        log_probability = F.log_softmax(torch.addmm(bias, rows, weight.T), dim=1)
        picked = labels[:, None]
        value -= log_probability.gather(1, picked).sum()
        error = log_probability.exp_()  # becomes the probabilities less the one-hot labels
        error.scatter_(1, picked, error.gather(1, picked) - 1)
        gradient[:, :-1].addmm_(error.T, rows)
        gradient[:, -1] += error.sum(dim=0)
    return float(value) / len(x), gradient / len(x)
