"""Values of the toolbox beside public implementations of the same quantities, and time beside theirs.

    python -m benchmarks.experiments.agreement           (writes benchmarks/results/agreement.json; minutes)
    python -m benchmarks.experiments.agreement --quick   (tiny sizes)

Each row is one quantity of the same random features in float64: the value here, that of the other, their difference.
Others are the packages vendi-score, reptrix, torch-cka and ckatorch, where they are installed, NumPy or SciPy, or the
formulas of a repository that is no package (repitl), rewritten. Times are CPU seconds of one thread, value without
gradient, float32, both taking turns.
"""

import importlib.metadata
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.stats
import torch
from scipy.spatial.distance import pdist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness import command_line, save, spread, take_turns
from matrix_ssl import matrix
from matrix_ssl.matrix import of_features

PACKAGES = ("vendi-score", "reptrix", "torch-cka", "ckatorch")
WIDTH = 4.0
Pair = tuple[Callable[[Tensor, Tensor], object], Callable[[Tensor, Tensor], object]]


def main() -> None:
    options = command_line(__doc__, "agreement.json").parse_args()
    versions = {name: version for name in PACKAGES if (version := installed(name))}
    sizes = [(100, 8)] if options.quick else [(1000, 128), (1000, 2048), (10_000, 128)]
    rows = [
        row for quantities in (entropies(), information(), comparison()) for row in values(quantities, *features(60, 6))
    ]
    timed = [row for n, d in sizes for row in timings(n, d, rounds=1 if options.quick else 3)]
    save(options.out, {"rows": rows, "timings": timed, "unit": "CPU seconds, one thread"}, versions=versions)


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def features(n: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two representations of n samples that share half of their columns."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.cat([x[:, : d // 2], torch.randn(n, d - d // 2, generator=generator, dtype=torch.float64)], 1)
    return x.to(dtype), y.to(dtype)


def values(family: tuple[str, dict[str, tuple[str, str, Callable[..., Any], Callable[..., Any]]]], x: Tensor, y: Tensor
           ) -> list[dict[str, Any]]:  # fmt: skip
    """The value here and that of the other, for every quantity that can be computed."""
    name, quantities = family
    rows = []
    for quantity, (package, note, ours, theirs) in quantities.items():
        row = {"family": name, "quantity": quantity, "other": package, "note": note}
        if package in PACKAGES and installed(package) is None:
            rows.append({**row, "ours": float(ours(x, y)), "theirs": None, "difference": None})
            continue
        first, second = float(ours(x, y)), float(theirs(x, y))
        rows.append({**row, "ours": first, "theirs": second, "difference": abs(first - second)})
    return rows


def gram(x: Tensor) -> Tensor:
    return matrix.gaussian_kernel(x, width=WIDTH)


def repitl_kernel(x: Tensor) -> Tensor:
    """exp(-D / 2σ²) of tiled differences."""
    return torch.exp(-(x.unsqueeze(1) - x.unsqueeze(0)).pow(2).sum(2) / (2 * WIDTH**2))


def repitl_entropy(k: Tensor, alpha: float) -> Tensor:
    """The entropy of the positive eigenvalues over their sum; of order 2 from the Frobenius norm over n²."""
    if alpha == 2:
        return -(k.pow(2).sum() / len(k) ** 2).log()
    p = torch.linalg.eigh(k)[0]
    p = p[p > 0] / p[p > 0].sum()
    return -(p * p.log()).sum() if alpha == 1 else (alpha * p.log()).exp().sum().log() / (1 - alpha)


def repitl_information(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    k, l = repitl_kernel(x), repitl_kernel(y)  # noqa: E741
    return repitl_entropy(k, alpha) + repitl_entropy(l, alpha) - repitl_entropy(k * l, alpha)


def entropies() -> tuple[str, dict[str, Any]]:
    def vendi(name: str) -> Any:
        import vendi_score.vendi

        return getattr(vendi_score.vendi, name)

    def effective_rank_of_reptrix(x: Tensor, _: Tensor) -> float:
        import reptrix.rankme

        return reptrix.rankme.get_rankme(x)

    repitl = {
        f"Rényi entropy of order {alpha} of a Gaussian kernel": (
            "repitl", "formula rewritten",
            lambda x, y, a=alpha: matrix.renyi_entropy(gram(x), alpha=a),
            lambda x, y, a=alpha: repitl_entropy(repitl_kernel(x), a),
        )
        for alpha in (1.0, 1.01, 2.0, 5.0)
    }  # fmt: skip
    scores = {
        f"Vendi score of order {name}": (
            "vendi-score", "score_K",
            lambda x, y, q=order: matrix.vendi_score(gram(x), order=q),
            lambda x, y, q=name: vendi("score_K")(gram(x).numpy(), q=q),
        )
        for name, order in ((1, 1.0), (2, 2.0), (0.5, 0.5), ("inf", math.inf))
    }  # fmt: skip
    return "entropies", repitl | scores | {
        "Vendi score of cosines, on the side of the features": (
            "vendi-score", "score_dual",
            lambda x, y: of_features.vendi_score(x),
            lambda x, y: vendi("score_dual")(x.numpy()),
        ),
        "Vendi score of order 2 of features": (
            "vendi-score", "score_X, which computes order 1 whatever q is",
            lambda x, y: of_features.vendi_score(x, order=2.0),
            lambda x, y: vendi("score_X")(x.numpy(), q=2),
        ),
        "weighted Vendi score": (
            "vendi-score", "score_K with p",
            lambda x, y: matrix.vendi_score(gram(x), weights=torch.arange(1.0, len(x) + 1, dtype=x.dtype)),
            lambda x, y: vendi("score_K")(
                gram(x).numpy(), p=np.arange(1, len(x) + 1) / np.arange(1, len(x) + 1).sum()
            ),
        ),
        "effective rank of the covariance": (
            "reptrix", "get_rankme, which is of eigenvalues and adds 1e-7 to each",
            lambda x, y: of_features.effective_rank(x),
            effective_rank_of_reptrix,
        ),
        "von Neumann entropy of a covariance": (
            "SciPy", "logm",
            lambda x, y: matrix.von_neumann_entropy(matrix.covariance(x)),
            lambda x, y: -np.trace(rho(x) @ scipy.linalg.logm(rho(x))).real,
        ),
    }  # fmt: skip


def rho(x: Tensor) -> np.ndarray:
    c = np.cov(x.numpy().T, bias=True)
    return c / np.trace(c)


def information() -> tuple[str, dict[str, Any]]:
    rows: dict[str, Any] = {}
    for alpha in (1.0, 1.01, 2.0):
        rows[f"mutual information of order {alpha} of Gaussian kernels"] = (
            "repitl", "formula rewritten",
            lambda x, y, a=alpha: matrix.mutual_information(gram(x), gram(y), alpha=a),
            lambda x, y, a=alpha: repitl_information(x, y, a),
        )  # fmt: skip
    rows["conditional entropy of order 1.01"] = (
        "repitl", "formula rewritten",
        lambda x, y: matrix.conditional_entropy(gram(x), gram(y), alpha=1.01),
        lambda x, y: repitl_entropy(repitl_kernel(x) * repitl_kernel(y), 1.01) - repitl_entropy(repitl_kernel(y), 1.01),
    )  # fmt: skip
    rows["Jensen-Rényi divergence of order 2 of second moments"] = (
        "repitl", "formula rewritten, for rows of length one",
        lambda x, y: of_features.jensen_renyi_divergence(unit(x), unit(y), alpha=2.0, about="origin"),
        lambda x, y: repitl_moments((unit(x), unit(y)), 2.0),
    )  # fmt: skip
    rows["Jensen-Shannon divergence of second moments"] = (
        "repitl", "formula rewritten, for rows of length one",
        lambda x, y: of_features.holevo_information(unit(x), unit(y), about="origin"),
        lambda x, y: repitl_moments((unit(x), unit(y)), 1.0),
    )  # fmt: skip
    return "information", rows


def unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=1)


def repitl_moments(rows: tuple[Tensor, Tensor], alpha: float) -> Tensor:
    def entropy(c: Tensor) -> Tensor:  # of a matrix of trace one
        p = torch.linalg.eigh(c)[0]
        p = p[p > 0]
        return -(p * p.log()).sum() if alpha == 1 else p.pow(alpha).sum().log() / (1 - alpha)

    first, second = (z.mT @ z / len(z) for z in rows)
    return entropy((first + second) / 2) - (entropy(first) + entropy(second)) / 2


def comparison() -> tuple[str, dict[str, Any]]:
    return "comparison", {
        "unbiased linear CKA": (
            "torch-cka", "float32", lambda x, y: matrix.linear_cka(x, y, estimator="unbiased"), torch_cka,
        ),
        "unbiased CKA of linear kernels": (
            "ckatorch", "hsic1", lambda x, y: matrix.linear_cka(x, y, estimator="unbiased"), cka_of_ckatorch("hsic1"),
        ),
        "linear CKA": ("ckatorch", "hsic0", matrix.linear_cka, cka_of_ckatorch("hsic0")),
        "mean canonical correlation": (
            "SciPy", "subspace_angles", matrix.cca,
            lambda x, y: np.cos(scipy.linalg.subspace_angles(centred(x), centred(y))).mean(),
        ),
        "Procrustes distance": (
            "SciPy", "orthogonal_procrustes", matrix.procrustes_distance, procrustes_of_scipy,
        ),
        "RSA, correlation and Spearman": (
            "SciPy", "pdist, spearmanr", matrix.rsa,
            lambda x, y: scipy.stats.spearmanr(pdist(x, "correlation"), pdist(y, "correlation")).statistic,
        ),
    }  # fmt: skip


def centred(x: Tensor) -> np.ndarray:
    return x.numpy() - x.numpy().mean(0)


def procrustes_of_scipy(x: Tensor, y: Tensor) -> float:
    a, b = (z / np.linalg.norm(z) for z in (centred(x), centred(y)))
    return float(np.linalg.norm(a - b @ scipy.linalg.orthogonal_procrustes(b, a)[0]) ** 2)


def torch_cka(x: Tensor, y: Tensor) -> float:
    """The package compares layers of networks: here the identity, one batch of all samples."""
    from torch_cka import CKA

    names = {"model1_layers": ["0"], "model2_layers": ["0"], "device": "cpu"}
    loaders = [DataLoader(TensorDataset(z.float()), batch_size=len(z)) for z in (x, y)]
    found = CKA(nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity()), **names)
    found.compare(*loaders)
    return float(found.export()["CKA"])


def cka_of_ckatorch(name: str) -> Callable[[Tensor, Tensor], float]:
    def value(x: Tensor, y: Tensor) -> float:
        import ckatorch.hsic

        k, l = (z @ z.mT for z in (x, y))  # noqa: E741
        if name == "hsic1":
            k, l = k[None], l[None]  # noqa: E741
        hsic = getattr(ckatorch.hsic, name)
        return float(hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt())

    return value


def timed_pairs(n: int) -> dict[str, Pair]:
    """What is here, and the other; what is n x n only for n that take seconds."""
    import vendi_score.vendi as vendi

    pairs: dict[str, Pair] = {
        "Vendi score of features; vendi-score's score_dual": (
            lambda x, y: of_features.vendi_score(x), lambda x, y: vendi.score_dual(x.numpy()),
        ),
        "effective rank of features; reptrix": (
            lambda x, y: of_features.effective_rank(x), lambda x, y: entropies()[1][
                "effective rank of the covariance"][3](x, y),
        ),
    }  # fmt: skip
    if n > 2000:
        return pairs
    return pairs | {
        "linear CKA of features; hsic0 of ckatorch": (matrix.linear_cka, cka_of_ckatorch("hsic0")),
        "Vendi score of features; vendi-score's score_X": (
            lambda x, y: of_features.vendi_score(x), lambda x, y: vendi.score_X(x.numpy()),
        ),
        "unbiased linear CKA of features; torch-cka": (
            lambda x, y: matrix.linear_cka(x, y, estimator="unbiased"), torch_cka,
        ),
        "mutual information of Gaussian kernels, order 1.01; repitl": (
            lambda x, y: matrix.mutual_information(gram(x), gram(y), alpha=1.01),
            lambda x, y: repitl_information(x, y, 1.01),
        ),
    }  # fmt: skip


def timings(n: int, d: int, *, rounds: int) -> list[dict[str, Any]]:
    """Seconds of both, and how many times faster this package is."""
    x, y = features(n, d, torch.float32)
    rows = []
    for name, (ours, theirs) in timed_pairs(n).items():
        if "repitl" in name and n * n * d > 2e8:
            continue  # its tiled differences take n²d numbers
        seconds = take_turns({"ours": lambda f=ours: f(x, y), "theirs": lambda f=theirs: f(x, y)}, rounds=rounds)
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
        rows.append({
            "quantity": name, "n": n, "d": d, "seconds": {key: spread(value) for key, value in seconds.items()},
            "times_faster": spread(ratios),
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
