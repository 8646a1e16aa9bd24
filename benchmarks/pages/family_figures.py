"""Figures of the pages on families of measures: what the definitions do, by computing them.

python -m benchmarks.pages.family_figures   (writes docs/figures/family_*.svg)
"""

import math

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from torch.nn.functional import normalize

from benchmarks.harness import ROOT
from benchmarks.pages.plots import STYLE, matplotlib, save
from matrix_ssl import matrix
from matrix_ssl.losses import mec_loss
from matrix_ssl.matrix import of_features

FIGURES = ROOT / "docs" / "figures"
D = 32  # width of the features


def main() -> None:
    torch.set_num_threads(1)
    for draw in (ranks, kernels, information, comparing, divergences, maximum_entropy):
        path = FIGURES / f"family_{draw.__name__}.svg"
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


def comparing() -> Figure:
    """Similarities of features and a noisy copy, and of unrelated features of more and more columns."""
    x, noise = normal(200, 8, 0) * torch.arange(1, 9) ** -1.0, normal(200, 8, 1)
    levels, columns = torch.linspace(0, 1, 25).tolist(), list(range(2, 61, 2))
    names = {
        "linear CKA": matrix.linear_cka, "mean CCA": matrix.cca, "SVCCA": matrix.svcca, "PWCCA": matrix.pwcca,
        "1 − Procrustes / 2": lambda a, b: 1 - matrix.procrustes_distance(a, b) / 2, "RSA": matrix.rsa,
    }  # fmt: skip
    figure, (left, right) = two_axes()
    for name, function in names.items():
        left.plot(levels, [function(x, x + level * noise).item() for level in levels], label=name)
    left.set(xlabel="noise added to a copy of a decaying spectrum", ylabel="similarity", title="a noisy copy")
    left.legend(fontsize=7)
    unrelated = [(normal(50, d, 2), normal(50, d, 3)) for d in columns]
    for function in names.values():
        right.plot(columns, [function(*pair).item() for pair in unrelated])
    unbiased = [matrix.linear_cka(*pair, estimator="unbiased").item() for pair in unrelated]
    right.plot(columns, unbiased, "--", color="black", label="unbiased CKA")
    right.set(xlabel="columns", title="50 unrelated samples")
    right.legend(fontsize=7)
    return figure


def divergences() -> Figure:
    """Divergences of two matrices of trace one as one loses its rank, and as one is rotated."""
    shifts, angles = torch.linspace(0, 0.998, 60).double(), torch.linspace(0, math.pi / 2, 40).double()
    collapsing = torch.diag_embed(torch.stack([1 + shifts, 1 - shifts], -1) / 2)
    turn = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).view(-1, 2, 2)
    fixed = torch.diag(torch.tensor([0.9, 0.1]).double())
    figure, (left, right) = two_axes()
    pairs = ((left, shifts, collapsing, torch.eye(2).double() / 2), (right, angles, turn @ fixed @ turn.mT, fixed))
    for axes, values, moving, other in pairs:
        still = other.expand_as(moving)
        axes.plot(values, matrix.matrix_kl(moving, still), label="MKL(P ‖ Q)")
        axes.plot(values, matrix.matrix_kl(still, moving), "--", label="MKL(Q ‖ P)")
        axes.plot(values, matrix.jensen_renyi_divergence(moving, still, alpha=1.0), label="Jensen-Rényi, order 1")
        axes.plot(values, matrix.schatten_divergence(moving, still) / 2, label="trace distance")
    left.set(xlabel="t", ylabel="nats; trace distance", title="P = diag(½ + t/2, ½ − t/2), Q = I/2", ylim=(0, 2.5))
    right.set(xlabel="angle of the rotation of P, radians", title="P is Q = diag(0.9, 0.1) rotated")
    left.legend(fontsize=7)
    return figure


def maximum_entropy() -> Figure:
    """The logarithm and its series, and losses of them against the decay of the spectrum of unit rows."""
    x, exponents = torch.linspace(0, 1.6, 60).double(), torch.linspace(0, 4, 25).tolist()
    orthogonal = torch.linalg.qr(centred(normal(256, D, 0)))[0]
    decaying = [normalize(orthogonal * torch.arange(1, D + 1).double() ** (-a / 2), dim=1) for a in exponents]
    figure, (left, right) = two_axes()
    for order in (1, 2, 3, 4):
        left.plot(
            x, sum((-1) ** (k + 1) * x**k / k for k in range(1, order + 1)), label=f"{order} term{'s' * (order > 1)}"
        )
        losses = [mec_loss(z, z, z, z, distortion=1.0 * D, order=order).item() for z in decaying]
        right.plot(exponents, losses)
    left.plot(x, x.log1p(), color="black", label="log(1 + x)")
    exact = [mec_loss(z, z, z, z, distortion=1.0 * D, logarithm="exact").item() for z in decaying]
    right.plot(exponents, exact, color="black", label="log det")
    left.set(xlabel="eigenvalue x of p zᵀ / s", title="the series")
    right.set(xlabel="exponent α of the decay of the spectrum", ylabel="loss", title="from spread out to collapsed")
    left.legend(fontsize=7)
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
