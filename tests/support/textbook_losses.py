"""The losses of the methods as their papers write them, in loops over rows, columns and pairs.

They share no code with the package. Every number is a scalar of PyTorch, so that the gradient is that of these loops.
"""

import itertools
import math

import numpy as np
import scipy.integrate
import torch
from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of two vectors."""
    return sum((a[i] * b[i] for i in range(len(a))), start=a.new_zeros(()))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle of two vectors."""
    return dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()


def simsiam(z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    """Chen and He, CVPR 2021, equation 2, with D(p, z) = -cosine."""
    n = len(z1)
    return sum((-cosine(z1[i], p2[i]) / 2 - cosine(z2[i], p1[i]) / 2 for i in range(n)), start=z1.new_zeros(())) / n


def byol(z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    """Grill et al., NeurIPS 2020, equation 2: the squared distance of vectors of length one, in both directions."""
    total = z1.new_zeros(())
    for z, p in ((z1, p2), (z2, p1)):
        for i in range(len(z)):
            difference = z[i] / dot(z[i], z[i]).sqrt() - p[i] / dot(p[i], p[i]).sqrt()
            total = total + dot(difference, difference)
    return total / len(z1)


def simclr(z1: Tensor, z2: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Chen et al., ICML 2020, algorithm 1, with the pairs (2k - 1, 2k)."""
    n = len(z1)
    views = [view for pair in zip(z1, z2, strict=True) for view in pair]

    def pair_loss(i: int, j: int) -> Tensor:
        others = [(cosine(views[i], views[k]) / temperature).exp() for k in range(2 * n) if k != i]
        return -((cosine(views[i], views[j]) / temperature).exp() / torch.stack(others).sum()).log()

    losses = [pair_loss(2 * k, 2 * k + 1) + pair_loss(2 * k + 1, 2 * k) for k in range(n)]
    return torch.stack(losses).sum() / (2 * n)


def moco_v2(q: Tensor, k: Tensor, queue: Tensor, *, temperature: float = 0.2) -> Tensor:
    """He et al., CVPR 2020, equation 1: one positive logit among those of the queue."""
    losses = []
    for i in range(len(q)):
        positive = (cosine(q[i], k[i]) / temperature).exp()
        negatives = [(cosine(q[i], other) / temperature).exp() for other in queue]
        losses.append(-(positive / (positive + torch.stack(negatives).sum())).log())
    return torch.stack(losses).mean()


def barlow_twins(z1: Tensor, z2: Tensor, *, redundancy_weight: float = 0.0051) -> Tensor:
    """Zbontar et al., ICML 2021, equations 1 and 2, of columns as BatchNorm leaves them."""
    n, d = z1.shape

    def normalise(column: Tensor) -> Tensor:
        mean = column.sum() / n
        variance = dot(column - mean, column - mean) / n
        return (column - mean) / (variance + 1e-5).sqrt()

    a, b = ([normalise(z[:, j]) for j in range(d)] for z in (z1, z2))
    total = z1.new_zeros(())
    for i in range(d):
        for j in range(d):
            correlation = dot(a[i], b[j]) / n
            total = total + ((1 - correlation) ** 2 if i == j else redundancy_weight * correlation**2)
    return total


def vicreg(
    z1: Tensor,
    z2: Tensor,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> Tensor:
    """Bardes et al., ICLR 2022, equations 1 to 6, the variance term as the mean of the branches as in the code."""
    n, d = z1.shape
    invariance = sum((dot(z1[i] - z2[i], z1[i] - z2[i]) for i in range(n)), start=z1.new_zeros(())) / (n * d)
    variance, covariance = z1.new_zeros(()), z1.new_zeros(())
    for z in (z1, z2):
        columns = [z[:, j] - z[:, j].sum() / n for j in range(d)]
        for i in range(d):
            deviation = (dot(columns[i], columns[i]) / (n - 1) + 1e-4).sqrt()
            variance = variance + (1 - deviation).clamp_min(0) / d / 2
            for j in range(d):
                if i != j:
                    covariance = covariance + (dot(columns[i], columns[j]) / (n - 1)) ** 2 / d
    return invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance


def sigreg(z: Tensor, *, directions: Tensor, knots: int = 17, largest_frequency: float = 3.0) -> Tensor:
    """Balestriero and LeCun, 2025: the statistic of Epps and Pulley along directions, by the trapezoidal rule."""
    n = z.shape[-2]
    flat = z.reshape(-1, n, z.shape[-1])
    total = z.new_zeros(())
    for view in flat:
        for j in range(directions.shape[1]):
            length = dot(directions[:, j], directions[:, j]).sqrt()
            x = [dot(row, directions[:, j]) / length for row in view]
            values = []
            for t in np.linspace(-largest_frequency, largest_frequency, 2 * knots - 1):
                phi = math.exp(-t * t / 2)
                cosines = sum(((t * value).cos() for value in x), start=z.new_zeros(())) / n
                sines = sum(((t * value).sin() for value in x), start=z.new_zeros(())) / n
                values.append(((cosines - phi) ** 2 + sines**2) * phi)
            step = largest_frequency / (knots - 1)
            total = total + n * step * sum((a + b) / 2 for a, b in itertools.pairwise(values))
    return total / (len(flat) * directions.shape[1])


def softmax(row: Tensor) -> Tensor:
    """Exponentials over their sum."""
    return row.exp() / row.exp().sum()


def swav(s1: Tensor, s2: Tensor, *, temperature: float = 0.1, regularisation: float = 0.05) -> Tensor:
    """Caron et al., NeurIPS 2020, equations 1 to 5, with three rounds of Sinkhorn and Knopp, columns before rows."""
    n, k = s1.shape
    total = s1.new_zeros(())
    for own, other in ((s1, s2), (s2, s1)):
        plan = (own.detach() / regularisation).exp().T.clone()  # K x n
        for _ in range(3):
            for i in range(k):
                plan[i] /= plan[i].sum()
            for j in range(n):
                plan[:, j] /= plan[:, j].sum()
        for j in range(n):
            total = total - dot(plan[:, j], softmax(other[j] / temperature).log()) / (2 * n)
    return total


def dino(
    z1: Tensor,
    z2: Tensor,
    p1: Tensor,
    p2: Tensor,
    *,
    centre: float = 0.0,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    """Caron et al., ICCV 2021, algorithm 1, with a centre whose entries are all the same but the first, which is 0."""
    total = z1.new_zeros(())
    shift = torch.full_like(z1[0], centre)
    shift[0] = 0
    for z, p in ((z1, p2), (z2, p1)):
        for i in range(len(z)):
            target = softmax((p[i] - shift) / teacher_temperature)
            total = total - dot(target, softmax(z[i] / student_temperature).log()) / (2 * len(z))
    return total


def unit(row: Tensor) -> Tensor:
    """A vector over its length."""
    return row / dot(row, row).sqrt()


def determinant(matrix: list[list[Tensor]]) -> Tensor:
    """By Laplace's expansion along the first row."""
    if len(matrix) == 1:
        return matrix[0][0]
    total = torch.zeros_like(matrix[0][0])
    for j, entry in enumerate(matrix[0]):
        minor = [[*row[:j], *row[j + 1 :]] for row in matrix[1:]]
        total = total + (-1) ** j * entry * determinant(minor)
    return total


def cor_info_max(
    z1: Tensor,
    z2: Tensor,
    *,
    invariance_weight: float = 250.0,
    forgetting: float = 0.01,
    ridge: float = 1e-6,
    steps: int = 1,
) -> Tensor:
    """Ozsoy et al., NeurIPS 2022, after some steps with the same batch, of which the last has the gradient."""
    n, d = z1.shape
    rows = [[unit(z[i]) for i in range(n)] for z in (z1, z2)]
    differences = [dot(a - b, a - b) for a, b in zip(*rows, strict=True)]
    total = invariance_weight * torch.stack(differences).sum() / (n * d)
    for branch in rows:
        mean = [branch[0].new_zeros(()) for _ in range(d)]
        covariance = [[branch[0].new_tensor(float(i == j)) for j in range(d)] for i in range(d)]
        for step in range(steps):
            if step == steps - 1:
                mean, covariance = [x.detach() for x in mean], [[x.detach() for x in row] for row in covariance]
            mean = [forgetting * mean[j] + (1 - forgetting) * sum(row[j] for row in branch) / n for j in range(d)]
            covariance = [
                [
                    forgetting * covariance[i][j]
                    + (1 - forgetting) * sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in branch) / n
                    for j in range(d)
                ]
                for i in range(d)
            ]
        ridged = [[covariance[i][j] + ridge * (i == j) for j in range(d)] for i in range(d)]
        total = total - determinant(ridged).log() / d
    return total


def emp_ssl(*views: Tensor, invariance_weight: float = 200.0, distortion: float = 0.2**0.5) -> Tensor:
    """Tong et al., 2023: cosines with the mean of the views, and the total coding rate of every view."""
    n, d = views[0].shape
    rows = [[unit(view[i]) for i in range(n)] for view in views]
    similarity, rate = [], []
    for i in range(n):
        mean = sum((view[i] for view in rows), start=rows[0][0] * 0) / len(views)
        similarity += [cosine(view[i], mean) for view in rows]
    for view in rows:
        gram = [
            [(i == j) + d / (n * distortion**2) * sum(r[i] * r[j] for r in view) for j in range(d)] for i in range(d)
        ]
        rate.append(determinant(gram).log() / 2)
    return -invariance_weight * torch.stack(similarity).mean() - torch.stack(rate).mean()


def nuclear_norm(rows: list[Tensor]) -> Tensor:
    """The trace of the root of the Gram matrix on its smaller side, by eigenvalues instead of singular values."""
    matrix = torch.stack(rows)
    gram = matrix @ matrix.T if len(rows) <= matrix.shape[1] else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram).sqrt().sum()


def mmcr(*views: Tensor, local_weight: float = 0.0) -> Tensor:
    """Yerxa et al., NeurIPS 2023: nuclear norms of the centroids and, weighted, of the views of each image."""
    n = len(views[0])
    images = [[unit(view[i]) for view in views] for i in range(n)]
    centroids = [sum(image[1:], start=image[0]) / len(views) for image in images]
    local = torch.stack([nuclear_norm(image) for image in images]).mean() if local_weight else 0.0
    return local_weight * local - nuclear_norm(centroids)


def w_mse(*views: Tensor, shrinkage: float = 1e-3) -> Tensor:
    """Ermolov et al., ICML 2021: rows solved one by one against Cholesky's factor, written out."""
    n, d = views[0].shape
    whitened = []
    for view in views:
        mean = [sum(view[i, j] for i in range(n)) / n for j in range(d)]
        centred = [[view[i, j] - mean[j] for j in range(d)] for i in range(n)]
        factor: list[list[Tensor]] = [[view.new_zeros(()) for _ in range(d)] for _ in range(d)]
        for i in range(d):
            for j in range(i + 1):
                entry = (1 - shrinkage) * sum(row[i] * row[j] for row in centred) / (n - 1) + shrinkage * (i == j)
                entry = entry - sum((factor[i][k] * factor[j][k] for k in range(j)), start=view.new_zeros(()))
                factor[i][j] = entry.sqrt() if i == j else entry / factor[j][j]
        rows = []
        for row in centred:
            solved: list[Tensor] = []
            for i in range(d):
                known = sum((factor[i][k] * solved[k] for k in range(i)), start=view.new_zeros(()))
                solved.append((row[i] - known) / factor[i][i])
            rows.append(unit(torch.stack(solved)))
        whitened.append(rows)
    pairs = [
        dot(a - b, a - b) for one, two in itertools.combinations(whitened, 2) for a, b in zip(one, two, strict=True)
    ]
    return torch.stack(pairs).mean()


def kernel_infonce(
    z1: Tensor,
    z2: Tensor,
    *,
    kernel: str = "sum",
    temperature: float = 0.1,
    exponent: float = 1.0,
    mixture: float = 0.5,
) -> Tensor:
    """Tan et al., ICLR 2024: the kernels of all pairs of the 2n views, and their mixtures."""
    rows = [unit(row) for z in (z1, z2) for row in z]
    n, half = len(z1), z1.shape[1] // 2

    def loss(rows: list[Tensor], power: float) -> Tensor:
        losses = []
        for i in range(2 * n):
            kernels = {
                k: (-(dot(rows[i] - rows[k], rows[i] - rows[k]) ** (power / 2)) / temperature).exp()
                for k in range(2 * n)
                if k != i
            }
            losses.append(-(kernels[(i + n) % (2 * n)] / torch.stack([*kernels.values()]).sum()).log())
        return torch.stack(losses).mean()

    if kernel == "exponential":
        return loss(rows, exponent)
    if kernel == "sum":
        return mixture * loss(rows, exponent) + (1 - mixture) * loss(rows, 2.0)
    first, second = [row[:half] for row in rows], [row[half:] for row in rows]
    return mixture * loss(first, exponent) + (1 - mixture) * loss(second, 2.0)


def epps_pulley(x: np.ndarray, *, largest_frequency: float = np.inf) -> float:
    """n ∫ |mean exp(i t x) - φ(t)|² φ(t) dt of numbers x, by adaptive quadrature."""

    def integrand(t: float) -> float:
        return abs(np.exp(1j * t * x).mean() - np.exp(-t * t / 2)) ** 2 * np.exp(-t * t / 2)

    value, _ = scipy.integrate.quad(integrand, -largest_frequency, largest_frequency, epsabs=1e-13, epsrel=1e-13)
    return len(x) * value


def epps_pulley_closed(x: np.ndarray) -> float:
    """The same over all frequencies in closed form, term by term by ∫ cos(at) exp(-bt²) dt = √(π/b) exp(-a²/4b)."""
    n = len(x)
    pairs = sum(math.exp(-((a - b) ** 2) / 2) for a in x for b in x) / n**2
    singles = sum(math.exp(-(a**2) / 4) for a in x) / n
    return n * (math.sqrt(2 * math.pi) * pairs - 2 * math.sqrt(math.pi) * singles + math.sqrt(2 * math.pi / 3))
