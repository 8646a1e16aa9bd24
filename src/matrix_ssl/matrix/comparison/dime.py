"""DiME: what two views of the same samples share beyond what any two samples share."""

import torch
from torch import Tensor

from matrix_ssl.matrix.information.entropy import renyi_entropy_of
from matrix_ssl.matrix.kernels.pairwise import gaussian_kernel
from matrix_ssl.matrix.numerics import validation
from matrix_ssl.matrix.numerics.scaling import rescaled

VIEWS = 256  # samples that ``dime_of_views`` compares


def difference_of_entropies(
    k1: Tensor,
    k2: Tensor,
    *,
    alpha: float = 1.0,
    permutations: int = 10,
    generator: torch.Generator | None = None,
    validate: bool | None = None,
) -> Tensor:
    """DiME = mean over permutations Π of S(K1, Π K2 Πᵀ) - S(K1, K2), S the joint Rényi entropy: (...), in nats.

    Since the single entropies do not depend on the order of the samples, this is the mutual information of the two
    views' kernels minus that of the same kernels with views of different samples: positive where views of the same
    sample are alike. Unlike mutual information, it is not largest for kernels of a width that tells all samples apart,
    for which the two joint entropies are equal. Kernels of independent views give zero on average, with individual
    values of either sign.

    Args:
        k1, k2: (..., n, n), symmetric positive semi-definite, of two views of the same n samples.
        alpha: the order of the entropy, zero or above; the reference uses 1.01.
        permutations: number of random permutations, 1 or above; shared by all leading dimensions.
        generator: random generator of the permutations. The same seed gives the same ones.
        validate: see ``matrix_ssl.matrix``.

    Raises:
        MatrixError: a kernel is not symmetric, a product not positive semi-definite, or the shapes do not fit.
        ValueError: alpha is below zero, or there is no permutation.

    Reference: Skean, Dhakal, Jacobs and Sanchez Giraldo, "DiME: Maximizing Mutual Information by a Difference of
        Matrix-Based Entropies", 2023, https://arxiv.org/abs/2301.08164.
    """
    validation.check_entropy_order(alpha)
    if not hasattr(permutations, "__index__") or permutations < 1:
        raise ValueError(f"permutations must be an integer, 1 or above, got {permutations!r}.")
    first, second = (rescaled(validation.checked_symmetric(k, name, validate)) for k, name in ((k1, "k1"), (k2, "k2")))
    validation.check_same_width(k1, k2, "k1 and k2")
    n, device = first.shape[-1], "cpu" if generator is None else generator.device
    dtype = validation.coarser(k1, k2)
    joint, *shuffled = (
        renyi_entropy_of(product, product.detach().to(dtype), "k1 * k2", alpha=alpha, validate=validate)
        for product in _products(
            first,
            second,
            [torch.randperm(n, generator=generator, device=device).to(first.device) for _ in range(permutations)],
        )
    )
    return sum(shuffled) / permutations - joint


def dime_of_views(x: Tensor, y: Tensor) -> float | None:
    """DiME of the Gaussian kernels of two views x and y (n, d) of the same samples, at most the first ``VIEWS``.

    The width of each kernel is the median distance of its view; the permutations are always the same. None for fewer
    than three samples, and where most samples of a view are equal, so that there is no width.
    """
    first, second = (z.detach()[:VIEWS].double() for z in (x, y))
    if len(first) < 3 or any(torch.pdist(z).median() == 0 for z in (first, second)):
        return None
    kernels = (gaussian_kernel(z, width="median") for z in (first, second))
    generator = torch.Generator().manual_seed(0)
    return difference_of_entropies(*(k.cpu() for k in kernels), generator=generator).item()


def _products(first: Tensor, second: Tensor, orders: list[Tensor]) -> list[Tensor]:
    """K1 ∘ K2, and with the samples of K2 in each of the orders."""
    return [first * second, *(first * second[..., order, :][..., order] for order in orders)]
