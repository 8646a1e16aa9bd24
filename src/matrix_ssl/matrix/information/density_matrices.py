"""Divergences between several matrices of trace one, such as covariances of different samples or kernels of the same.

Every argument A (..., d, d) is symmetric positive semi-definite and stands for the state A / tr A.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from matrix_ssl.matrix.information.entropy import renyi_entropy_of
from matrix_ssl.matrix.numerics import kernel_checks, validation
from matrix_ssl.matrix.spectra.eigenvalues import eigenvalues_of

Weights = Sequence[float] | Tensor | None


def jensen_renyi_divergence(
    *states: Tensor, alpha: float, weights: Weights = None, validate: bool | None = None
) -> Tensor:
    """Jensen-Rényi divergence S(Σ wᵢ ρᵢ) - Σ wᵢ S(ρᵢ) of k states, S the Rényi entropy: (...), in nats.

    Zero for equal states. For alpha from 0 to 1, where S is concave, it is non-negative; at alpha = 1 it is the quantum
    Jensen-Shannon divergence and at most the entropy of the weights. Above 1 it can be negative.

    Args:
        states: A₁, ..., Aₖ (..., d, d), symmetric positive semi-definite; leading dimensions are broadcast.
        alpha: the order of the entropy, zero or above.
        weights: k numbers, zero or above, which are divided by their sum; equal by default.
        validate: see ``matrix_ssl.matrix``.

    Raises:
        MatrixError: a state is not symmetric, zero or not positive semi-definite, or the shapes do not fit.
        ValueError: alpha is below zero, there are fewer than two states, or the weights do not fit.

    Reference: Hoyos-Osorio and Sanchez-Giraldo, "The Representation Jensen-Rényi Divergence", ICASSP 2022,
        https://arxiv.org/abs/2112.01583; for alpha = 1 Lin, "Divergence measures based on the Shannon entropy", IEEE
        Transactions on Information Theory 37(1), 1991, of distributions.
    """
    validation.check_entropy_order(alpha)
    names = [f"state {number}" for number in range(1, len(states) + 1)]
    if len(states) < 2:
        raise ValueError(f"At least 2 states are needed, got {len(states)}.")
    full = [_state(state, name, validate) for state, name in zip(states, names, strict=True)]
    for (first, name), (second, other) in itertools.combinations(zip(states, names, strict=True), 2):
        validation.check_same_width(first, second, f"{name} and {other}")
    w = mixture_weights(weights, len(states))
    single = [
        renyi_entropy_of(rho, state, name, alpha=alpha, validate=validate)
        for rho, state, name in zip(full, states, names, strict=True)
    ]
    mixture = sum(weight * rho for weight, rho in zip(w, full, strict=True))
    assert isinstance(mixture, Tensor)
    entropy = renyi_entropy_of(mixture, mixture, "the mixture", alpha=alpha, validate=False)
    return entropy - sum(weight * value for weight, value in zip(w, single, strict=True))


def holevo_information(*states: Tensor, weights: Weights = None, validate: bool | None = None) -> Tensor:
    """Holevo information χ = S(Σ wᵢ ρᵢ) - Σ wᵢ S(ρᵢ) of an ensemble, S the von Neumann entropy: (...), in nats.

    Ranges from 0, where all states are equal, to the Shannon entropy of the weights, where they are orthogonal. It is
    an upper bound on what a measurement tells about which state it was. With classes given by their covariances, it is
    how much the spectrum alone says about the class. This is ``jensen_renyi_divergence`` of order 1, with the same
    arguments and errors.

    Reference: Holevo, "Bounds for the quantity of information transmitted by a quantum communication channel", Problems
        of Information Transmission 9(3), 1973.
    """
    return jensen_renyi_divergence(*states, alpha=1.0, weights=weights, validate=validate)


def schatten_divergence(p: Tensor, q: Tensor, *, order: float = 1.0, validate: bool | None = None) -> Tensor:
    """Schatten norm ‖ρ - σ‖ = (Σ |λᵢ|^order)^(1 / order) of the difference of two states: (...), dimensionless.

    A distance: zero only for equal states. Ranges from 0 to 2^(1 / order), which orthogonal pure states reach; at order
    1 it is twice the trace distance, at order 2 the Frobenius norm, which needs no eigenvalues, and at order ∞ the
    spectral norm. Equal states and, at order 1, zero eigenvalues contribute no gradient. It can be differentiated
    twice, but at orders other than 2 a second derivative is an error where eigenvalues of ρ - σ coincide.

    Args:
        p, q: (..., d, d), symmetric positive semi-definite, which is not checked; leading dimensions are broadcast.
        order: 1 or above, infinity included.
        validate: see ``matrix_ssl.matrix``.

    Raises:
        MatrixError: an argument is not symmetric or zero, or the shapes do not fit.
        ValueError: the order is below 1.

    Reference: Bhatia, "Matrix Analysis", Springer 1997, chapter IV.
    """
    validation.check_constant(order=order)
    if not validation.is_number(order) or not order >= 1:
        raise ValueError(f"order must be 1 or above, got {order!r}.")
    rho, sigma = _state(p, "p", validate), _state(q, "q", validate)
    validation.check_same_width(p, q, "p and q")
    if order == 2:
        square = (rho - sigma).square().sum((-2, -1))
        return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
    size = eigenvalues_of(rho - sigma, used=rho.shape[-1]).abs()
    largest = size.amax(-1, keepdim=True).detach()
    if order == torch.inf:
        return size.amax(-1)
    scale = torch.where(largest > 0, largest, 1.0)
    total = (size / scale).pow(order).sum(-1)
    return scale.squeeze(-1) * torch.where(total > 0, torch.where(total > 0, total, 1.0).pow(1 / order), 0.0)


def mixture_weights(weights: Weights, k: int) -> list[float]:
    """k weights of sum one; ValueError if their number differs, one is negative, or none is above zero."""
    if weights is None:
        return [1 / k] * k
    validation.check_constant(weights=weights)
    numbers = [float(weight) for weight in weights]
    if len(numbers) != k or not all(0 <= number < torch.inf for number in numbers) or sum(numbers) == 0:
        raise ValueError(f"weights must be {k} numbers, zero or above and not all zero, got {numbers}.")
    return [number / sum(numbers) for number in numbers]


def _state(a: Tensor, name: str, validate: bool | None) -> Tensor:
    """A / tr A, symmetric, in full precision."""
    full = validation.checked_symmetric(a, name, validate)
    trace = full.diagonal(dim1=-2, dim2=-1).sum(-1)
    kernel_checks.check_trace(trace, a, name, validate)
    return full / trace[..., None, None]
