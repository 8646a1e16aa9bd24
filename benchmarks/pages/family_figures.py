"""Figures of the pages on ranks, kernels and information: what the definitions do, by computing them.

python -m benchmarks.pages.family_figures   (writes docs/figures/family_*.svg)
"""

import math
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.harness import ROOT
from benchmarks.pages.plots import STYLE, matplotlib, save
from matrix_ssl import matrix
from matrix_ssl.matrix import of_features

FIGURES = ROOT / "docs" / "figures"
D = 32  # width of the features


def main() -> None:
    torch.set_num_threads(1)
    for name, draw in (("ranks", ranks), ("kernels", kernels), ("information", information)):
        path = Path(FIGURES / f"family_{name}.svg")
        save(path, draw())
        Console().print(f"written: {path}", markup=False)


def ranks() -> Figure:
    """Ranks of features whose spectrum decays as r^-α, and of features with a mean of growing length."""
    orthogonal = torch.linalg.qr(centred(normal(256, D, 0)))[0] * math.sqrt(256)  # covariance I, mean zero
    exponents, means = torch.linspace(0, 3, 25).tolist(), torch.linspace(0, 4, 25).tolist()
    decaying = [orthogonal * torch.arange(1, D + 1).double() ** (-alpha / 2) for alpha in exponents]
    shifted = [orthogonal * torch.arange(1, D + 1).double() ** -0.5 + length / math.sqrt(D) for length in means]
    names = {
        "RankMe": matrix.rank_me, "effective rank": of_features.effective_rank,
        "participation ratio": matrix.participation_ratio, "stable rank": matrix.stable_rank,
        "PCA rank": matrix.pca_rank,
    }  # fmt: skip
    figure, (left, right) = two_axes()
    for name, rank in names.items():
        left.plot(exponents, [rank(x).item() for x in decaying], label=name)
        right.plot(means, [rank(x).item() for x in shifted], label=name)
    left.set(xlabel="exponent α of the decay λ ∝ r^-α", ylabel=f"rank of {D} features", title="decay of the spectrum")
    right.set(xlabel="length of the mean", title="a mean, at α = 1")
    left.legend(fontsize=7)
    return figure


def kernels() -> Figure:
    """Entropies of a Gaussian kernel against its width, and Vendi scores of copies against the order."""
    x = torch.cat([normal(20, 2, seed) * 0.3 + 4 * torch.tensor([seed % 2, seed // 2]) for seed in range(4)])
    widths, orders = torch.logspace(-1.5, 1.5, 30).tolist(), torch.linspace(0, 6, 31).tolist()
    figure, (left, right) = two_axes()
    for alpha in (0.5, 1.0, 2.0, math.inf):
        values = [matrix.renyi_entropy(matrix.gaussian_kernel(x, width=w), alpha=alpha).item() for w in widths]
        left.semilogx(widths, values, label=f"order {'∞' if alpha == math.inf else alpha}")
    left.axhline(math.log(4), color="black", linewidth=0.8, linestyle="--")
    left.axvline(matrix.kernel_width(x, rule="median").item(), color="grey", linewidth=0.8, linestyle=":")
    left.set(xlabel="width of the Gaussian kernel", ylabel="entropy (nats)", title="80 samples in four clusters")
    left.legend()
    for shares in ((1, 1, 1, 1), (5, 1, 1, 1), (20, 1, 1, 1)):
        weights = torch.tensor(shares).double()
        values = [matrix.vendi_score(torch.eye(4).double(), weights=weights, order=q).item() for q in orders]
        right.plot(orders, values, label=" : ".join(map(str, shares)))
    right.set(xlabel="order q", ylabel="Vendi score", title="four kinds, by their shares")
    right.legend()
    return figure


def information() -> Figure:
    """MIR, HDR and mutual information of features and a noisy copy, and DiME against the width of the kernels."""
    x, noise = normal(100, 8, 0), normal(100, 8, 1)
    levels, widths = torch.linspace(0, 3, 25).tolist(), torch.logspace(-1, 1.5, 25).tolist()
    figure, (left, right) = two_axes()
    pairs = [(x, x + level * noise) for level in levels]
    left.plot(levels, [of_features.matrix_mutual_information_ratio(*pair).item() for pair in pairs], label="MIR")
    left.plot(levels, [of_features.entropy_difference_ratio(*pair).item() for pair in pairs], label="HDR")
    left.set(xlabel="noise added to a copy", ylabel="ratio", title="features and a noisy copy", ylim=(0, 1.05))
    left.legend()
    for label, pair in (("noisy copy", (x, x + 0.3 * noise)), ("unrelated", (x, noise))):
        grams = [[matrix.gaussian_kernel(z, width=width) for z in pair] for width in widths]
        shared = [matrix.mutual_information(*two).item() for two in grams]
        generators = [torch.Generator().manual_seed(0) for _ in widths]
        dime = [
            matrix.difference_of_entropies(*two, generator=generator).item()
            for two, generator in zip(grams, generators, strict=True)
        ]
        right.semilogx(widths, shared, label=f"mutual information, {label}")
        right.semilogx(widths, dime, "--", label=f"DiME, {label}")
    right.set(xlabel="width of both kernels", ylabel="nats", title="what a small width does")
    right.legend(fontsize=7)
    return figure


def two_axes() -> tuple[Figure, tuple[Axes, Axes]]:
    """A figure with two axes in the style of the pages."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
    return figure, (left, right)


def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(0)


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


if __name__ == "__main__":
    main()
