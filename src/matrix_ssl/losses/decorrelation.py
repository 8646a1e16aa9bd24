"""The sum of squares of a matrix of covariances, on the smaller of two sides."""

from torch import Tensor


def cross_product_norm(a: Tensor, b: Tensor) -> Tensor:
    """‖aᵀb‖_F², (), of a, b (n, d): with d x d numbers, or, where n < d, with n x n, as <a aᵀ, b bᵀ>."""
    n, d = a.shape
    if n < d:
        return ((a @ a.mT) * (b @ b.mT)).sum()
    return (a.mT @ b).square().sum()
