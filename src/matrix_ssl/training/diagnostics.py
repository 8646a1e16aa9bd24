"""What to monitor while a self-supervised encoder trains, and when to report that it is collapsing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from matrix_ssl.matrix import of_features, shannon_entropy, spectrum

# of ``describe``
NAMES = (
    "effective_rank", "matrix_entropy", "effective_rank_projection", "spread_projection", "teacher_similarity",
)  # fmt: skip
_FEW_DIRECTIONS = 3.0
_ROWS = 512  # rows of a batch whose n x n kernels ``information`` compares
_SHRUNK = 0.1  # relative to the spread in the first line
WINDOW = 5  # lines of metrics that must agree


def describe(features: Tensor, student: Tensor, teacher: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A spectral summary of a batch.

    Args:
        features: (n, k), the encoder's, for the batch of all processes.
        student, teacher: (n, d), outputs of the two branches for opposite views.

    Returns:
        Scalars: ``effective_rank`` (1 to k) and ``matrix_entropy`` (nats, 0 to log k) of the features' covariance
        scaled to trace one; ``effective_rank_projection`` of the student's; ``spread_projection``, the root mean square
        of the standard deviations of its d entries; ``teacher_similarity``, the mean cosine of the two branches. Then
        the eigenvalues of the features' covariance, in descending order, summing to one.
    """
    eigenvalues = spectrum(features)
    entropy = shannon_entropy(eigenvalues)
    values = {
        "effective_rank": entropy.exp(),
        "matrix_entropy": entropy,
        "effective_rank_projection": shannon_entropy(spectrum(student)).exp(),
        "spread_projection": student.float().var(0, correction=0).mean().sqrt(),
        "teacher_similarity": F.cosine_similarity(student, teacher, dim=1).mean(),
    }
    return values, eigenvalues


def information(x: Tensor, y: Tensor) -> dict[str, float]:
    """The information that the cosine kernels of two sets of vectors (n, d) and (n, e) of the same images share.

    Returns:
        ``mir``, the matrix mutual information ratio (S₁ + S₂ - S₁₂) / min(S₁, S₂), and ``hdr``, the matrix entropy
        difference ratio |S₁ - S₂| / max(S₁, S₂), in [0, 1], from at most 512 rows.

    Raises:
        MatrixError: an element is not finite, or the numbers of rows differ.

    Reference: Song, Tan, Zou, Ma and Huang, "Unveiling the Dynamics of Information Interplay in Supervised Learning",
        ICML 2024, https://arxiv.org/abs/2406.03999.
    """
    first, second = (rows.detach()[:_ROWS].double() for rows in (x, y))
    return {
        "mir": of_features.matrix_mutual_information_ratio(first, second).item(),
        "hdr": of_features.entropy_difference_ratio(first, second).item(),
    }


def alarms(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong in the newest lines of metrics and what to try, as "KIND: sentence"; empty while all is well.

    Args:
        history: lines of ``metrics.jsonl``, oldest first, of which the first and the newest ``WINDOW`` matter. With
            fewer lines, a collapse cannot be detected.
    """
    found = []
    recent = history[-WINDOW:]
    if len(recent) == WINDOW and all(_is_number(line.get(name, 0.0)) for line in recent for name in NAMES):
        first = history[0].get("spread_projection") or 0.0  # runs of earlier versions lack it
        shrunk = [line["spread_projection"] / first for line in recent] if first > 0 else [1.0]
        ranks = [line["effective_rank"] for line in recent]
        flat = max(line["matrix_entropy"] for line in recent) - min(line["matrix_entropy"] for line in recent) < 0.05
        if max(ranks) < _FEW_DIRECTIONS and flat:
            found.append(
                f"Collapse: the features span {ranks[-1]:.1f} directions and their entropy does not move. Try a lower "
                f"optimizer.learning_rate, more warm-up epochs, a larger batch or stronger views."
            )
        elif max(line["effective_rank_projection"] for line in recent) < _FEW_DIRECTIONS:
            found.append(
                f"Collapse of the projections: they span {recent[-1]['effective_rank_projection']:.1f} directions "
                f"while the features still span {ranks[-1]:.1f}. Try a lower optimizer.learning_rate or a "
                f"larger weight of the term that keeps outputs apart, with Matrix-SSL a different method.ridge."
            )
        elif max(shrunk) < _SHRUNK:
            found.append(
                f"Collapse to a point: the projections spread {shrunk[-1]:.2g} times as far as in the first line. Try "
                f"a larger weight of the term that keeps outputs apart, or a lower optimizer.learning_rate."
            )
        if max(line["teacher_similarity"] for line in recent) < 0:
            found.append(
                f"The two branches point apart: their mean cosine is {recent[-1]['teacher_similarity']:.2f}, one "
                f"does not follow the other. Try a lower optimizer.learning_rate or, with a teacher, "
                f"method.teacher_momentum nearer to 1."
            )
    counts = [0, *(line.get("negative_determinants", 0) for line in history[-2:])]
    new = counts[-1] - counts[-2] if history else 0
    if new > 0:
        found.append(
            f"Negative determinant: that of the uniformity term was negative {new} times since the last line. Student "
            f"and teacher are anti-correlated beyond the ridge, and the gradient is not to be trusted there. Try a "
            f"larger method.ridge."
        )
    return found


def _is_number(value: Any) -> bool:
    """Whether a diagnostic succeeded: in JSON, one that failed is null."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def is_finite(*values: Tensor) -> Tensor:
    """A boolean scalar: whether every element of every tensor is finite."""
    return torch.stack([torch.isfinite(value).all() for value in values]).all()


def is_bad(loss: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """A boolean scalar: whether the loss or a gradient's norm is not finite. Few operations, and none waits."""
    norms = torch._foreach_norm(list(gradients))
    values = torch.stack([loss.detach().to(norms[0].dtype), *norms]) if norms else loss.detach()
    return (values - values).ne(0).any()  # infinity and NaN minus themselves are NaN
