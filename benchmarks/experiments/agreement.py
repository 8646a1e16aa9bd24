"""Values of the toolbox beside public implementations of the same quantities.

    python -m benchmarks.experiments.agreement           (writes benchmarks/results/agreement.json; seconds)

Each row is one quantity of the same random features in float64: the value here, that of the other, their difference.
Others are the packages vendi-score, reptrix, torch-cka and ckatorch, where they are installed, NumPy or SciPy, or the
formulas of a paper or of a repository that is no package, rewritten. ``benchmarks.speed.toolbox`` has times.
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
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness import command_line, save
from matrix_ssl import matrix
from matrix_ssl.losses import mec_loss
from matrix_ssl.matrix import of_features

PACKAGES = ("vendi-score", "reptrix", "torch-cka", "ckatorch")
WIDTH = 4.0


def main() -> None:
    options = command_line(__doc__, "agreement.json").parse_args()
    versions = {name: version for name in PACKAGES if (version := installed(name))}
    shapes = {name: (200, 40) if name == "ranks" else (60, 6) for name in FAMILIES}  # 40 for the fit of a decay
    rows = [row for name, family in FAMILIES.items() for row in values(family(), *features(*shapes[name]))]
    save(options.out, {"rows": rows, "shapes": shapes}, versions=versions)


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
    package = CKA(nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity()), **names)
    package.compare(*loaders)
    return float(package.export()["CKA"])


def cka_of_ckatorch(name: str) -> Callable[[Tensor, Tensor], float]:
    def value(x: Tensor, y: Tensor) -> float:
        import ckatorch.hsic

        k, l = (z @ z.mT for z in (x, y))  # noqa: E741
        if name == "hsic1":
            k, l = k[None], l[None]  # noqa: E741
        hsic = getattr(ckatorch.hsic, name)
        return float(hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt())

    return value


def ranks() -> tuple[str, dict[str, Any]]:
    def alpha_of_reptrix(x: Tensor, _: Tensor) -> float:
        import reptrix.alpha

        return reptrix.alpha.get_alpha(x, fit_range=np.arange(3, 40))[0]

    def lidar_of_reptrix(x: Tensor, y: Tensor) -> float:
        import reptrix.lidar

        return reptrix.lidar.get_lidar(torch.stack([x, y], 1), len(x), 2, del_sigma_augs=2e-4)

    return "ranks", {
        "RankMe": (
            "RankMe's paper", "formula rewritten, which adds 1e-7 to every p", lambda x, y: matrix.rank_me(x),
            lambda x, y: np.exp(entropy_of(1e-7 + shares(np.linalg.svd(x.numpy(), compute_uv=False)))),
        ),
        "participation ratio": (
            "NumPy", "cov", lambda x, y: matrix.participation_ratio(x),
            lambda x, y: np.trace(np.cov(x.T)) ** 2 / np.square(np.cov(x.T)).sum(),
        ),
        "stable rank": (
            "SciPy", "norm", lambda x, y: matrix.stable_rank(x),
            lambda x, y: (scipy.linalg.norm(x.numpy()) / scipy.linalg.norm(x.numpy(), 2)) ** 2,
        ),
        "numerical rank": (
            "NumPy", "matrix_rank", lambda x, y: matrix.numerical_rank(x), lambda x, y: np.linalg.matrix_rank(x.numpy())
        ),
        "PCA rank": (
            "scikit-learn", "PCA(0.95)", lambda x, y: matrix.pca_rank(x),
            lambda x, y: PCA(0.95, svd_solver="full").fit(x.numpy()).n_components_,
        ),
        "α-ReQ": ("reptrix", "get_alpha, of the ranks 4 to 40", lambda x, y: matrix.alpha_req(x), alpha_of_reptrix),
        "self-cluster": (
            "Tsitsulin et al.", "formula rewritten", lambda x, y: matrix.self_cluster(x),
            lambda x, y: mean_square_of_cosines(x.numpy()),
        ),
        "LiDAR": (
            "LiDAR's paper", "formula rewritten, with SciPy's sqrtm", lambda x, y: matrix.lidar(torch.stack([x, y], 1)),
            lambda x, y: np.exp(entropy_of(shares(np.linalg.eigvalsh(discriminant(x.numpy(), y.numpy()))))),
        ),
        "LiDAR of reptrix": (
            "reptrix", "get_lidar, which takes the variances of the discriminant's rows for its eigenvalues",
            lambda x, y: matrix.lidar(torch.stack([x, y], 1)), lidar_of_reptrix,
        ),
    }  # fmt: skip


def shares(values: np.ndarray) -> np.ndarray:
    return values[values > 0] / values[values > 0].sum()


def entropy_of(p: np.ndarray) -> float:
    return float(-(p * np.log(p)).sum())


def mean_square_of_cosines(x: np.ndarray) -> float:
    """The score from all pairs of different rows."""
    (n, d), unit = x.shape, x / np.linalg.norm(x, axis=1, keepdims=True)
    squares = [(unit[i] @ unit[j]) ** 2 for i in range(n) for j in range(n) if i != j]
    return float((d * np.mean(squares) - 1) / (d - 1))


def discriminant(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Σ_w^-½ Σ_b Σ_w^-½ of two views, with the ridge 1e-4."""
    means = (x + y) / 2
    away = np.concatenate([x - means, y - means])
    root = scipy.linalg.sqrtm(scipy.linalg.inv(away.T @ away / len(away) + 1e-4 * np.eye(x.shape[1]))).real
    product = root @ np.cov(means.T, bias=True) @ root
    return (product + product.T) / 2


def divergences() -> tuple[str, dict[str, Any]]:
    def two(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return rho(x), rho(y)

    def states(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(rho(x)), torch.from_numpy(rho(y))

    def kl(p: np.ndarray, q: np.ndarray) -> float:
        log = scipy.linalg.logm
        return float(np.trace(p @ log(p) - p @ log(q) - p + q).real)

    def grams(x: Tensor, y: Tensor) -> list[np.ndarray]:
        unit = [z.numpy() / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y)]
        return [z @ z.T / len(z) + np.eye(len(z)) / len(z) for z in unit]

    return "divergences", {
        "matrix cross-entropy": (
            "SciPy", "logm", lambda x, y: matrix.matrix_cross_entropy(*states(x, y)),
            lambda x, y: np.trace(-rho(x) @ scipy.linalg.logm(rho(y)) + rho(y)).real,
        ),
        "matrix KL": ("SciPy", "logm", lambda x, y: matrix.matrix_kl(*states(x, y)), lambda x, y: kl(*two(x, y))),
        "matrix KL of two encoders": (
            "SciPy", "logm", lambda x, y: of_features.gram_kl(x, y, ridge=1 / len(x)), lambda x, y: kl(*grams(x, y)),
        ),
        "log-determinant": (
            "NumPy", "slogdet", lambda x, y: of_features.log_det(x),
            lambda x, y: np.linalg.slogdet(np.cov(x.T, bias=True))[1],
        ),
        "Schatten divergence of order 1": (
            "NumPy", "norm(·, 'nuc')", lambda x, y: matrix.schatten_divergence(*states(x, y)),
            lambda x, y: np.linalg.norm(rho(x) - rho(y), "nuc"),
        ),
    }  # fmt: skip


def maximum_entropy() -> tuple[str, dict[str, Any]]:
    def published(x: Tensor, y: Tensor) -> Tensor:
        """Both orders of one pair are the same; d = 6, s = n ε / d with ε = 64."""
        a, b = normalize(x, dim=1), normalize(y, dim=1)
        scale = len(x) * 64 / x.shape[1]
        c = a @ b.mT / scale
        powers = [torch.linalg.matrix_power(c, k).trace() * (-1) ** (k + 1) / k for k in range(1, 5)]
        return -scale / len(x) * torch.stack(powers).sum()

    def determinant(x: Tensor, y: Tensor) -> float:
        a, b = (normalize(z, dim=1).numpy() for z in (x, y))
        scale = len(x) * 64 / x.shape[1]
        return float(-scale / len(x) * np.linalg.slogdet(np.eye(len(a)) + a @ b.T / scale)[1])

    return "maximum-entropy", {
        "MEC, four terms": (
            "MEC", "formula rewritten, powers of n x n", lambda x, y: mec_loss(x, x, y, y), published
        ),
        "MEC, one term": (
            "PyTorch", "cosine_similarity, as SimSiam has it", lambda x, y: mec_loss(x, x, y, y, order=1),
            lambda x, y: -cosine_similarity(x, y).mean(),
        ),
        "MEC, exact": (
            "NumPy", "slogdet", lambda x, y: mec_loss(x, x, y, y, logarithm="exact"), determinant,
        ),
        "coding rate": (
            "MCR²", "formula rewritten", lambda x, y: matrix.coding_rate(x),
            lambda x, y: np.linalg.slogdet(np.eye(x.shape[1]) + x.shape[1] / len(x) / 0.25 * (x.mT @ x).numpy())[1] / 2,
        ),
    }  # fmt: skip


FAMILIES = {
    "entropies": entropies, "information": information, "comparison": comparison, "ranks": ranks,
    "divergences": divergences, "maximum-entropy": maximum_entropy,
}  # fmt: skip

if __name__ == "__main__":
    main()
