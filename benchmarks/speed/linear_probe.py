"""The linear probe beside scikit-learn: CPU seconds of a fit to convergence at 100,000 x 512, and what they predict.

    python -m benchmarks.speed.linear_probe            (writes benchmarks/results/linear_probe.json; minutes)
    python -m benchmarks.speed.linear_probe --quick    (tiny sizes)

Features are drawn around the means of ten classes that overlap: a problem as hard as features of images, and one that
is separable, on which any search is quick. All see the same standardised features, which ours standardises once more,
and the same penalty. Ours is what evaluation calls and ends at gradients of 1e-8; beside it is the same search with
scikit-learn's tolerance of 1e-6. scikit-learn's is its L-BFGS, in float32 and in float64, which also stops where the
objective no longer falls: the largest entry of the gradient over n that each has reached is computed here in float64.
That and how far log-probabilities are from ours stand beside the times. They take turns, on one thread.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.harness import command_line, save, spread, take_turns
from matrix_ssl.evaluate.probes.linear import LogisticRegression as LinearFit
from matrix_ssl.evaluate.probes.linear import fit_logistic_regression, fit_path

CLASSES, ROUNDS = 10, 3
TOLERANCE = 1e-6  # of scikit-learn
SIZE = (100_000, 512)
DISTANCES = {"overlapping": 0.08, "separable": 1.0}  # of the means of classes, in standard deviations of a feature


def problem(n: int, d: int, distance: float) -> tuple[Tensor, Tensor]:
    """Features (n, d), standardised, and labels (n,)."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, CLASSES, n)
    x = draw.standard_normal((n, d), dtype=np.float32) + distance * draw.standard_normal((CLASSES, d))[y]
    x = (x - x.mean(0)) / x.std(0)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def largest_gradient(x: Tensor, y: Tensor, weight: np.ndarray, bias: np.ndarray) -> float:
    """The largest entry of the gradient of the objective over n, in float64, at weights of a penalty of one."""
    rows, n = x.double().numpy(), len(x)
    scores = rows @ weight.T + bias
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(n), y.numpy()] -= 1
    return float(max(np.abs(p.T @ rows + weight).max(), np.abs(p.sum(0)).max())) / n


def variants(x: Tensor, y: Tensor, fitted: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Callable[[], None]]:
    """The fits; each leaves weights and biases for the features as they are."""

    def ours(name: str, fit: Callable[[], LinearFit]) -> None:
        result = fit()
        weight = result.weight / result.std
        fitted[name] = weight.numpy(), (result.bias - weight @ result.mean).numpy()

    def theirs(name: str, dtype: Any) -> None:
        model = LogisticRegression(C=1.0, tol=TOLERANCE, max_iter=1000).fit(x.numpy().astype(dtype), y.numpy())
        fitted[name] = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)

    def at_their_tolerance() -> LinearFit:
        return next(fit_path(x, y, classes=CLASSES, penalties=(1.0,), tolerance=TOLERANCE))

    return {
        "ours": lambda: ours("ours", lambda: fit_logistic_regression(x, y, classes=CLASSES, l2=1.0)),
        "ours, to 1e-6": lambda: ours("ours, to 1e-6", at_their_tolerance),
        "scikit-learn, float32": lambda: theirs("scikit-learn, float32", np.float32),
        "scikit-learn, float64": lambda: theirs("scikit-learn, float64", np.float64),
    }


def main() -> None:
    parser = command_line(__doc__, "linear_probe.json")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="Rounds that count, after one that does not.")
    arguments = parser.parse_args()
    (n, d), rounds = ((400, 8), 1) if arguments.quick else (SIZE, arguments.rounds)
    rows = []
    for name, distance in DISTANCES.items():
        fitted: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        x, y = problem(n, d, distance)
        seconds = take_turns(variants(x, y, fitted), rounds=rounds)
        some = x[:1000].double().numpy()
        logs = {name: log_softmax(some @ weight.T + bias, axis=1) for name, (weight, bias) in fitted.items()}
        for variant, values in seconds.items():
            ratios = [other / own for own, other in zip(seconds["ours"], values, strict=True)]
            apart = float(np.abs(logs[variant] - logs["ours"]).max())
            gradient = largest_gradient(x, y, *fitted[variant])
            rows.append({
                "problem": name, "variant": variant, "seconds": spread(values), "times_ours": spread(ratios),
                "largest_difference_of_log_probabilities": apart, "largest_gradient": gradient,
            })  # fmt: skip
            text = f"{name}: {variant} {np.median(values):.2f} s, {np.median(ratios):.2f} times ours"
            text += f", {apart:.1e} apart, gradient {gradient:.1e}"
            Console().print(text, markup=False)
        save(arguments.out, {"n": n, "d": d, "classes": CLASSES, "rounds": rounds, "rows": rows})


if __name__ == "__main__":
    main()
