"""The linear probe beside scikit-learn: CPU seconds of a fit to convergence at 100,000 x 512, and what they predict.

    python -m benchmarks.speed.linear_probe            (writes benchmarks/results/linear_probe.json; minutes)
    python -m benchmarks.speed.linear_probe --quick    (tiny sizes)

Features are drawn around the means of ten classes that overlap: a problem as hard as features of images, and one that
is separable, on which any search is quick. Both see the same standardised features and the same penalty. Ours is what
evaluation calls and ends at gradients of 1e-8; scikit-learn's is its L-BFGS, in float32 and in float64, which ends at
1e-6. How far scores are apart stands beside the times. They take turns, on one thread.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.harness import command_line, save, spread, take_turns
from matrix_ssl.evaluate.probes.linear import fit_logistic_regression

CLASSES, ROUNDS = 10, 3
SIZE = (100_000, 512)
DISTANCES = {"overlapping": 0.08, "separable": 1.0}  # of the means of classes, in standard deviations of a feature


def problem(n: int, d: int, distance: float) -> tuple[Tensor, Tensor]:
    """Features (n, d), standardised, and labels (n,)."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, CLASSES, n)
    x = draw.standard_normal((n, d), dtype=np.float32) + distance * draw.standard_normal((CLASSES, d))[y]
    x = (x - x.mean(0)) / x.std(0)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def variants(x: Tensor, y: Tensor, fitted: dict[str, np.ndarray]) -> dict[str, Callable[[], None]]:
    """The fits; each leaves its scores of the first images."""
    some = x[:1000]

    def ours() -> None:
        fit = fit_logistic_regression(x, y, classes=CLASSES, l2=1.0)
        weight, bias = fit.weight.double(), fit.bias.double()
        scores = ((some.double() - fit.mean) / fit.std) @ weight.mT + bias
        fitted["ours"] = scores.log_softmax(1).numpy()

    def theirs(name: str, dtype: Any) -> None:
        model = LogisticRegression(C=1.0, tol=1e-6, max_iter=1000).fit(x.numpy().astype(dtype), y.numpy())
        fitted[name] = model.predict_log_proba(some.numpy().astype(dtype))

    return {
        "ours": ours,
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
        fitted: dict[str, np.ndarray] = {}
        seconds = take_turns(variants(*problem(n, d, distance), fitted), rounds=rounds)
        for variant, values in seconds.items():
            ratios = [other / own for own, other in zip(seconds["ours"], values, strict=True)]
            apart = float(np.abs(fitted[variant] - fitted["scikit-learn, float64"]).max())
            rows.append({
                "problem": name, "variant": variant, "seconds": spread(values), "times_ours": spread(ratios),
                "largest_difference_of_log_probabilities": apart,
            })  # fmt: skip
            text = f"{name}: {variant} {np.median(values):.2f} s, {np.median(ratios):.2f} times ours, {apart:.1e} apart"
            Console().print(text, markup=False)
        save(arguments.out, {"n": n, "d": d, "classes": CLASSES, "rounds": rounds, "rows": rows})


if __name__ == "__main__":
    main()
