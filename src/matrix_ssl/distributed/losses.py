"""Losses of a batch spread over processes, with the value and gradient that one process with all rows would compute.

The two orders of the Matrix-SSL loss, (p2, z1) and (p1, z2), are independent and cost the same, and so are the two
views of the matrix entropy: half of the processes compute one, and half the other. They exchange outputs or
covariances, whichever is less. For Matrix-SSL these are the 4nd numbers of student and teacher, or six d x d matrices,
which an all-reduce moves twice; for the matrix entropy, 2nd numbers or two d x d matrices.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from matrix_ssl import distributed, losses
from matrix_ssl.losses import (
    DEFAULTS,
    MatrixEntropyTerms,
    MatrixSSLTerms,
    Objective,
    unit_rows,
    without_autocast,
)
from matrix_ssl.losses.matrix_entropy import ALIGNMENT_WEIGHT, check_constants
from matrix_ssl.losses.objective import check_choice

Exchange = Literal["auto", "rows", "covariances"]


def matrix_ssl_terms(
    z1: Tensor,
    z2: Tensor,
    p1: Tensor,
    p2: Tensor,
    *,
    objective: Objective = DEFAULTS,
    exchange: Exchange = "auto",
    sizes: Sequence[int] | None = None,
) -> MatrixSSLTerms:
    """``losses.matrix_ssl_terms`` of the batch of all processes, from each process's own rows.

    Every process gets the same terms, and once DistributedDataParallel has averaged over the processes, parameters have
    the gradient of the whole batch. In a single process this is ``losses.matrix_ssl_terms`` itself.

    Args:
        z1, z2: (n_local, d), this process's student outputs of the two views.
        p1, p2: (n_local, d), this process's teacher outputs.
        objective: constants of the loss.
        exchange: ``"rows"`` gathers outputs, ``"covariances"`` sums d x d matrices, ``"auto"`` picks what moves less.
        sizes: n_local of every process; by default all are equal, as in ``distributed.gather``.

    Raises:
        ValueError: as ``losses.matrix_ssl_terms``; ``exchange`` is unknown; ``sizes`` does not fit.
    """
    check_choice("exchange", exchange, get_args(Exchange))
    size = distributed.world_size()
    if size == 1:
        return losses.matrix_ssl_terms(z1, z2, p1, p2, objective=objective)
    _check_own_rows(z1=z1, z2=z2, p1=p1, p2=p2)
    sizes = distributed.row_counts(z1, sizes)
    own = distributed.rank() % 2  # the order that this process computes
    if exchange == "rows" or (exchange == "auto" and sum(sizes) < 3 * z1.shape[1]):
        students = distributed.gather_for_parts(torch.stack([z1, z2], 1), sizes=sizes)
        teachers = distributed.gather_for_parts(torch.stack([p2, p1], 1), sizes=sizes)
        terms = losses.matrix_ssl_order_terms(teachers[:, own], students[:, own], objective=objective)
    else:
        whole = covariances(torch.stack([p2, p1]), torch.stack([z1, z2]), samples=sum(sizes))
        terms = losses.matrix_ssl_covariance_terms(*whole[:, own], objective=objective)
    sharing = (size + 1 - own) // 2  # processes that compute the same order
    loss, uniformity, alignment, negative = distributed.sum_of_parts(torch.stack(terms) / sharing)
    count = negative.detach().round()  # a sum of thirds can end below one
    return MatrixSSLTerms(loss / 2, uniformity.detach() / 2, alignment.detach() / 2, count)


def covariances(teachers: Tensor, students: Tensor, *, samples: int) -> Tensor:
    """C(p, z), C(p, p) and C(z, z) of unit rows of the batch of all processes, about its means: (3, k, d, d).

    Teachers and students are (k, n_local, d); ``samples`` is n over all processes. The result is the same on every
    process, for a loss of which every process computes a part.
    """
    with without_autocast(teachers):
        a, b = unit_rows(teachers), unit_rows(students)
        # the means are treated as constants: their gradient is a sum of centred rows, which is zero
        means = distributed.all_reduce_sum(torch.stack([a.detach().sum(-2), b.detach().sum(-2)])) / samples
        a, b = a - means[0].unsqueeze(-2), b - means[1].unsqueeze(-2)
        return distributed.all_reduce_sum(torch.stack([a.mT @ b, a.mT @ a, b.mT @ b]) / samples)


def matrix_entropy_terms(
    z1: Tensor,
    z2: Tensor,
    *,
    alignment_weight: float = ALIGNMENT_WEIGHT,
    order: float = 1.0,
    width: float = 0.0,
    exchange: Exchange = "auto",
    sizes: Sequence[int] | None = None,
) -> MatrixEntropyTerms:
    """``losses.matrix_entropy_terms`` of the batch of all processes, from each process's own rows.

    Every process gets the same terms, and once DistributedDataParallel has averaged over the processes, parameters have
    the gradient of the whole batch. In a single process this is ``losses.matrix_entropy_terms`` itself.

    Args:
        z1, z2: (n_local, d), this process's outputs for the two views.
        alignment_weight, order, width: see ``losses.matrix_entropy_loss``.
        exchange: ``"rows"`` gathers outputs, ``"covariances"`` sums d x d matrices, ``"auto"`` picks what moves less.
            A kernel, ``width`` above zero, needs the rows.
        sizes: n_local of every process; by default all are equal, as in ``distributed.gather``.

    Raises:
        ValueError: as ``losses.matrix_entropy_terms``; ``exchange`` is unknown or ``"covariances"`` with a kernel;
            ``sizes`` does not fit.
    """
    check_choice("exchange", exchange, get_args(Exchange))
    check_constants(alignment_weight, order, width)
    if exchange == "covariances" and width > 0:
        raise ValueError(f"exchange='covariances' cannot serve a kernel, width={width:g}: use 'rows' or 'auto'.")
    size = distributed.world_size()
    if size == 1:
        return losses.matrix_entropy_terms(z1, z2, alignment_weight=alignment_weight, order=order, width=width)
    _check_own_rows(z1=z1, z2=z2)
    sizes = distributed.row_counts(z1, sizes)
    samples = sum(sizes)
    own = distributed.rank() % 2  # the view that this process computes
    with without_autocast(z1):
        a, b = unit_rows(z1), unit_rows(z2)
        if exchange == "rows" or width > 0 or (exchange == "auto" and samples < 2 * z1.shape[1]):
            views = distributed.gather_for_parts(torch.stack([z1, z2], 1), sizes=sizes)
            entropy = losses.view_entropy(views[:, own], order=order, width=width)
        else:
            whole = distributed.all_reduce_sum(torch.stack([a.mT @ a, b.mT @ b]) / samples)
            entropy = losses.covariance_entropy(whole[own], order=order)
        sharing = (size + 1 - own) // 2  # processes that compute the same view
        parts = torch.stack([entropy / sharing / 2, torch.linalg.vecdot(a, b).sum() / samples])
        entropy, cosine = distributed.sum_of_parts(parts)
    return MatrixEntropyTerms(-entropy - alignment_weight * cosine, entropy.detach(), cosine.detach())


def _check_own_rows(**outputs: Tensor) -> None:
    """Raises ValueError, before anything is sent, unless all have one shape (n_local, d) with n_local 0 or above."""
    shapes = [tuple(x.shape) for x in outputs.values()]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][1] < 1:
        raise ValueError(f"Expected {', '.join(outputs)} of one shape (n_local, d), got {shapes}.")
