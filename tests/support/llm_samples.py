"""Small heads, hidden states and labels for the tests of the language-model loss, and textbook versions of it."""

import warnings
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special
import torch
from torch import Tensor
from torch.nn import functional as F

from matrix_ssl.llm import (
    MatrixCrossEntropyTerms,
    Objective,
    matrix_cross_entropy_loss,
    matrix_cross_entropy_terms,
    matrix_cross_entropy_terms_from_logits,
)

IGNORED = -100


def options(**constants: Any) -> dict[str, Any]:
    """Keywords of the loss, with the constants of the objective by name."""
    own = {key: constants.pop(key) for key in ("num_items_in_batch", "ignore_index") if key in constants}
    return own | {"objective": Objective(**constants)}


def loss(*tensors: Tensor, **constants: Any) -> Tensor:
    """``matrix_cross_entropy_loss`` with the constants of the objective by name."""
    return matrix_cross_entropy_loss(*tensors, **options(**constants))


def terms(*tensors: Tensor, **constants: Any) -> MatrixCrossEntropyTerms:
    """``matrix_cross_entropy_terms`` with the constants of the objective by name."""
    return matrix_cross_entropy_terms(*tensors, **options(**constants))


def terms_from_logits(*tensors: Tensor, **constants: Any) -> MatrixCrossEntropyTerms:
    """``matrix_cross_entropy_terms_from_logits`` with the constants of the objective by name."""
    return matrix_cross_entropy_terms_from_logits(*tensors, **options(**constants))


def loss_from_logits(*tensors: Tensor, **constants: Any) -> Tensor:
    """The loss of ``terms_from_logits``."""
    return terms_from_logits(*tensors, **constants).loss


def sample(
    vocabulary: int = 11, d: int = 5, *, batch: int = 2, length: int = 6, seed: int = 0, sharpness: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and labels in float64; some labels are ignored, and rows share a direction."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(vocabulary, d, generator=generator, dtype=torch.float64) + 0.3
    hidden = sharpness * torch.randn(batch, length, d, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, vocabulary, (batch, length), generator=generator)
    labels[0, 1] = labels[-1, -1] = IGNORED
    return hidden, head, labels


def counted(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x (batch, length, k) that predict a label, and the labels, position by position."""
    pairs = [
        (x[b, t], labels[b, t + 1])
        for b in range(labels.shape[0])
        for t in range(labels.shape[1] - 1)
        if labels[b, t + 1] != IGNORED
    ]
    return torch.stack([row for row, _ in pairs]), torch.stack([label for _, label in pairs])


def unit(head: Tensor) -> np.ndarray:
    """Rows over their length."""
    return head.numpy() / np.linalg.norm(head.numpy(), axis=1, keepdims=True)


def probabilities(logits: Tensor) -> np.ndarray:
    """Softmax of each row."""
    return scipy.special.softmax(logits.numpy(), axis=1)


def minus_log(a: np.ndarray, y: np.ndarray) -> float:
    """-yᵀ log(A) y by SciPy's dense logarithm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it warns of errors from 2e-13 on
        return float(-y @ scipy.linalg.logm(a) @ y)


def dense_values(logits: Tensor, head: Tensor, targets: Tensor, ridge: float) -> list[float]:
    """The definition, position by position; of the rows of ``logits`` (n, vocabulary)."""
    rows = unit(head)
    return [
        minus_log(rows.T @ np.diag(q) @ rows + ridge * np.eye(rows.shape[1]), rows[target])
        for q, target in zip(probabilities(logits), targets, strict=True)
    ]


def closed_values(logits: Tensor, head: Tensor, targets: Tensor, ridge: float) -> list[float]:
    """-log(Σ q <y_i, y>² + ridge)."""
    rows = unit(head)
    return [
        -np.log((q * (rows @ rows[target]) ** 2).sum() + ridge)
        for q, target in zip(probabilities(logits), targets, strict=True)
    ]


def top_values(logits: Tensor, head: Tensor, targets: Tensor, ridge: float, count: int) -> list[float]:
    """The definition with the target and the most probable others alone."""
    rows, values = unit(head), []
    for q, target in zip(probabilities(logits), targets.tolist(), strict=True):
        others = [i for i in np.argsort(-q) if i != target][: count - 1]
        part = rows[[target, *others]]
        q_s = part.T @ np.diag(q[[target, *others]]) @ part
        values.append(minus_log(q_s + ridge * np.eye(rows.shape[1]), rows[target]))
    return values


def lanczos_basis(q: np.ndarray, rows: np.ndarray, target: int, steps: int) -> np.ndarray:
    """An orthonormal basis (d, steps) of y, Qy, ..., by a QR factorisation of these, each of length one."""
    matrix, powers = rows.T @ np.diag(q) @ rows, [rows[target]]
    for _ in range(steps - 1):
        powers.append(matrix @ powers[-1] / np.linalg.norm(matrix @ powers[-1]))
    return np.linalg.qr(np.stack(powers, 1))[0]


def lanczos_values(logits: Tensor, head: Tensor, targets: Tensor, ridge: float, steps: int) -> list[float]:
    """Compression to the Krylov space."""
    rows, values = unit(head), []
    for q, target in zip(probabilities(logits), targets.tolist(), strict=True):
        v = lanczos_basis(q, rows, target, steps)
        values.append(minus_log(v.T @ rows.T @ np.diag(q) @ rows @ v + ridge * np.eye(steps), v.T @ rows[target]))
    return values


def reference_loss(
    hidden: Tensor, head: Tensor, labels: Tensor, *, weight: float, ridge: float, rows: Tensor | None = None
) -> Tensor:
    """The dense form by PyTorch's autograd; ``rows`` stand for the head in Q, by default the detached head."""
    states, targets = counted(hidden, labels)
    y = F.normalize(head.detach() if rows is None else rows, dim=1)
    logits = states @ head.mT
    q = logits.softmax(1)
    matrices = torch.einsum("tv,vi,vj->tij", q, y, y) + ridge * torch.eye(y.shape[1], dtype=y.dtype)
    eigenvalues, vectors = torch.linalg.eigh(matrices)
    along = torch.einsum("tij,ti->tj", vectors, y[targets])
    return F.cross_entropy(logits, targets) - weight * (along.square() * eigenvalues.log()).sum(1).mean()
