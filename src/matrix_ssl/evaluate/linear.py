"""Multinomial logistic regression on frozen features, solved to convergence.

A convex problem with one solution: no learning rate, no epochs and no random numbers to tune, so that two encoders
differ by their features only.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.inputs import ROWS, check_features, check_labelled

_FLOAT64_NUMBERS = 2**27  # up to this size (1 GiB) the standardised features are kept in float64, above in float32
_TOLERANCE = 1e-8  # the search goes on until no entry of the gradient of the mean objective is larger
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
    bias: Tensor  # (classes,); minus infinity for a class without training pictures
    mean: Tensor  # (d,)
    std: Tensor  # (d,)
    iterations: int
    converged: bool  # false: the gradient was still too large when the search stopped

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """Log-odds up to a constant a row: (n, d) -> (n, classes). A softmax makes them probabilities.

        Raises:
            DataError: features of another width, or that are empty or not finite.
        """
        check_features(features, "features to classify")
        if features.shape[1] != len(self.mean):
            raise DataError(f"the classifier was fitted on {len(self.mean)} features, got {features.shape[1]}.")
        return torch.cat([self._scores(part) for part in features.split(ROWS)])

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
    parts = features.split(ROWS)
    mean = torch.stack([part.sum(dim=0, dtype=torch.float64) for part in parts]).sum(dim=0) / n
    variance = torch.stack([(part.double() - mean).square_().sum(dim=0) for part in parts]).sum(dim=0) / n
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
        labels: whole numbers (n,) in [0, classes). A class without pictures is never predicted.
        scale: mean and standard deviation to standardise with; those of ``features`` when absent.

    Raises:
        ConfigError: ``l2`` is not positive.
        DataError: features or labels that cannot be used, or fewer than two classes among the labels.
    """
    if l2 <= 0:
        raise ConfigError(f"l2={l2}: expected a positive penalty, for example 1.0; without one no solution need exist.")
    check_labelled(features, labels, "training features")
    if int(labels.max()) >= classes:
        raise DataError(f"training features: label {int(labels.max())}, but there are {classes} classes from 0.")
    present, targets = labels.to(features.device).unique(return_inverse=True)
    if len(present) < 2:
        raise DataError(f"every training picture has the label {int(present)}: a classifier needs two classes.")
    scale = scale_of(features) if scale is None else scale
    dtype = torch.float64 if features.numel() <= _FLOAT64_NUMBERS else torch.float32
    mean, std = scale.mean.to(features.device), scale.std.to(features.device)
    scaled = features.to(dtype, copy=True).sub_(mean).div_(std)
    fitted, iterations, converged = _fit(scaled, targets, l2=l2, max_iterations=max_iterations)
    weight = fitted.new_zeros(classes, features.shape[1])
    bias = fitted.new_full((classes,), -torch.inf)  # the limit of its bias, which would never be reached by steps
    weight[present], bias[present] = fitted[:, :-1], fitted[:, -1]
    return LogisticRegression(weight, bias, mean, std, iterations, converged)


def _fit(x: Tensor, targets: Tensor, *, l2: float, max_iterations: int) -> tuple[Tensor, int, bool]:
    """Weights and, in the last column, biases (classes, d + 1) for the features ``x`` as they are."""
    if len(x) >= x.shape[1]:
        return _minimise(x, targets, l2=l2, max_iterations=max_iterations)
    # Fewer pictures than features: the gradient of W lies in the span of the pictures, and so does the solution. In an
    # orthonormal basis of the span (x = r^T q^T, W = v q^T) the scores and ||W|| = ||v|| are unchanged.
    q, r = torch.linalg.qr(x.T)
    fitted, iterations, converged = _minimise(r.T.contiguous(), targets, l2=l2, max_iterations=max_iterations)
    return torch.cat([fitted[:, :-1] @ q.T.double(), fitted[:, -1:]], dim=1), iterations, converged


def _minimise(x: Tensor, targets: Tensor, *, l2: float, max_iterations: int) -> tuple[Tensor, int, bool]:
    # SciPy's L-BFGS-B keeps its history in compiled code: on small problems five times faster than torch.optim.LBFGS
    from scipy.optimize import minimize  # slow to import, and only probes need it

    shape = (int(targets.max()) + 1, x.shape[1] + 1)

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = torch.from_numpy(flat).to(x.device).view(shape)
        value, gradient = _objective(parameters, x, targets, l2=l2)
        return value, gradient.cpu().numpy().ravel()

    options = {
        "maxiter": max_iterations,
        "maxfun": 2 * max_iterations,
        "gtol": _TOLERANCE,
        "ftol": 0.0,  # only the gradient tells how far the solution is
        "maxcor": 20,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if x.numel() < _ONE_THREAD else threads)
    try:
        found = minimize(objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options)
    finally:
        torch.set_num_threads(threads)
    converged = bool(np.abs(found.jac).max() <= _CONVERGED)
    return torch.from_numpy(found.x).to(x.device).view(shape), int(found.nit), converged


def _objective(parameters: Tensor, x: Tensor, targets: Tensor, *, l2: float) -> tuple[float, Tensor]:
    """The objective divided by n, and its gradient; by rows, so that the scores of all pictures need not fit."""
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
