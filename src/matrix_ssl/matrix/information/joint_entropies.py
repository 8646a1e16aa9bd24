"""Joint and conditional entropies of Gram matrices of the same samples, and the information measures built on them.

A kernel of n samples is a symmetric positive semi-definite Gram matrix (..., n, n), from ``matrix_ssl.matrix.kernels``
or any other with a constant diagonal. S(K) is the Rényi entropy of K / tr K, and S(K₁, ..., Kₖ) that of the elementwise
product. Leading dimensions are broadcast. Values are in nats unless stated otherwise and can be differentiated twice,
except at order ∞.

If the kernels have a constant diagonal, as those of unit vectors φᵢ, ψᵢ, ... do, K₁/n has the eigenvalues of the state
(1/n) Σ |φᵢ⟩⟨φᵢ|, the product of two kernels has those of (1/n) Σ |φᵢ⟩⟨φᵢ| ⊗ |ψᵢ⟩⟨ψᵢ|, and so on: those of one separable
state and its parts. At order 1, therefore, everything that holds for entropies of separable states holds:
subadditivity, non-negative conditional entropies, and strong subadditivity, S(K₁ | K₂, K₃) ≤ S(K₁ | K₂). At every order
S(K₁, K₂) is at least S(K₁). Subadditivity also holds at order 0, and fails at other orders.

The data-processing inequality holds at order 1 if the processed kernel K' is a factor of the original, K = K' ∘ M with
a positive semi-definite M, as for a Gaussian kernel of fewer columns or of a larger width. It fails for functions of
features in general: the linear kernel of a linear map of y can share more with x than that of y itself, since the map
may make rows orthogonal that were not.

Reference: Giraldo, Rao and Principe, "Measures of Entropy From Data Using Infinitely Divisible Kernels", IEEE
    Transactions on Information Theory 61(1), 2015, https://arxiv.org/abs/1211.2459; here in nats.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor

from matrix_ssl.matrix.information.entropy import renyi_entropy_of
from matrix_ssl.matrix.numerics import validation
from matrix_ssl.matrix.numerics.scaling import rescaled

Normaliser = Literal["min", "max", "mean", "geometric_mean", "joint"]


class Entropies:
    """Joint entropies of any of several kernels, by number as in ``entropies(0, 2)``; each is computed once."""

    def __init__(self, compute: Callable[[tuple[int, ...]], Tensor]):
        self._compute = compute
        self._known: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, *numbers: int) -> Tensor:
        if numbers not in self._known:
            self._known[numbers] = self._compute(numbers)
        return self._known[numbers]


def joint_entropy(*grams: Tensor, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """Joint entropy S(K₁, ..., Kₖ): the Rényi entropy of the Hadamard product, scaled to trace one: (...), in nats.

    For kernels with a constant diagonal it is at least every single entropy, for every alpha, and at most their sum for
    alpha = 0 and alpha = 1. For a single kernel it is that kernel's entropy.

    Args:
        grams: k1, k2, ... (..., n, n), symmetric positive semi-definite, of the same n samples.
        alpha: the order of the entropy, zero or above; 1 is the von Neumann entropy, 2 needs no eigenvalues.

    Raises:
        MatrixError: a kernel is not symmetric, their product not positive semi-definite, or the shapes do not fit.
        ValueError: alpha is below zero, or there is no kernel.

    Reference: Giraldo, Rao and Principe, 2015; for more than two Yu, Giraldo, Jenssen and Principe, "Multivariate
        Extension of Matrix-Based Rényi's α-Order Entropy Functional", IEEE TPAMI 42(11), 2020,
        https://arxiv.org/abs/1808.07912.
    """
    everything = tuple(range(len(grams)))
    return entropies_of_grams(grams, alpha, validate)(*everything)


def conditional_entropy(
    gram: Tensor, given: Tensor | Sequence[Tensor], *, alpha: float = 1.0, validate: bool | None = None
) -> Tensor:
    """Conditional entropy S(K | G) = S(K, G) - S(G) of a kernel given others: (...), in nats.

    For kernels with a constant diagonal it is non-negative for every alpha, and at most S(K) at alpha = 0 and 1. At
    alpha = 1 conditioning on a further kernel does not increase it.

    Args:
        gram: (..., n, n), symmetric positive semi-definite.
        given: G, one kernel of the same samples or several.
        alpha: the order of the entropy, zero or above.

    Raises:
        MatrixError, ValueError: as in ``joint_entropy``.

    Reference: Giraldo, Rao and Principe, 2015, equation 27.
    """
    conditions, names = conditions_of(given)
    entropy = entropies_of_grams((gram, *conditions), alpha, validate, ["gram", *names])
    known = tuple(range(1, len(conditions) + 1))
    return entropy(0, *known) - entropy(*known)


def mutual_information(k1: Tensor, k2: Tensor, *, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """Mutual information S(K1) + S(K2) - S(K1, K2) of two kernels, S being the Rényi entropy: (...), in nats.

    For kernels with a constant diagonal it exceeds neither entropy, for every alpha. It is non-negative at alpha = 1,
    by the subadditivity of the von Neumann entropy, and at alpha = 0; at other orders it can be negative. Kernels of
    independent factors, 11ᵀ ⊗ B and A ⊗ 11ᵀ, give zero. Arguments, return value, errors and reference are those of
    ``joint_entropy``; see also Zhang et al., ICML 2024, section 2.
    """
    return mutual_information_of(entropies_of_grams((k1, k2), alpha, validate))


def normalised_mutual_information(
    k1: Tensor, k2: Tensor, *, by: Normaliser, alpha: float = 1.0, validate: bool | None = None
) -> Tensor:
    """Mutual information over a normaliser from the two entropies: (...), dimensionless; 0 where that is zero.

    For kernels with a constant diagonal it is at most 1, and at alpha = 0 and 1 at least 0. A kernel whose elements are
    0 and 1, such as that of labels, has the value 1 with itself; other kernels have less, since K ∘ K is not K.

    Args:
        k1, k2: (..., n, n), as in ``mutual_information``.
        by: the normaliser: ``"min"``, ``"max"``, ``"mean"`` or ``"geometric_mean"`` of S(K1) and S(K2), or ``"joint"``,
            their joint entropy.
        alpha: the order of the entropy, zero or above.

    Raises:
        MatrixError, ValueError: as in ``joint_entropy``; ``by`` is not one of the five.

    Reference: Vinh, Epps and Bailey, "Information Theoretic Measures for Clusterings Comparison", JMLR 11, 2010, table
        2, of partitions; here of kernels.
    """
    return normalised_mutual_information_of(entropies_of_grams((k1, k2), alpha, validate), by)


def matrix_mutual_information_ratio(
    k1: Tensor, k2: Tensor, *, alpha: float = 1.0, validate: bool | None = None
) -> Tensor:
    """MIR = I(K1; K2) / min(S(K1), S(K2)) of two kernels: (...), dimensionless, 0 where an entropy is zero.

    Ranges from 0 to 1 for alpha = 1 and kernels with a constant diagonal. Song et al. use linear kernels of unit-length
    rows, as ``matrix_ssl.matrix.of_features`` does: features of a batch and the classifier's rows for their classes, or
    the two branches of a method.

    Arguments and errors are those of ``mutual_information``.

    Reference: Song, Tan, Zou, Ma, Huang, "Unveiling the Dynamics of Information Interplay in Supervised Learning",
        ICML 2024, https://arxiv.org/abs/2406.03999: definition of the matrix mutual information ratio.
    """
    return normalised_mutual_information_of(entropies_of_grams((k1, k2), alpha, validate), "min")


def entropy_difference_ratio(k1: Tensor, k2: Tensor, *, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """HDR = |S(K1) - S(K2)| / max(S(K1), S(K2)) of two kernels: (...), from 0 to 1, 0 where both entropies are zero.

    The kernels may be of different samples, even of different sizes; leading dimensions are broadcast. Its gradient is
    zero where the entropies are equal. Arguments and errors are those of ``mutual_information``.

    Reference: Song et al., ICML 2024, https://arxiv.org/abs/2406.03999: definition of the matrix entropy difference
        ratio.
    """
    first, second = (entropies_of_grams((k,), alpha, validate, [name])(0) for k, name in ((k1, "k1"), (k2, "k2")))
    return entropy_difference_ratio_of(first, second)


def total_correlation(*grams: Tensor, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """Total correlation Σ S(Kᵢ) - S(K₁, ..., Kₖ), how far k kernels are from independence: (...), in nats.

    For two kernels it is their mutual information. For kernels with a constant diagonal it is non-negative at alpha = 0
    and 1, and at most the sum of all entropies except the largest. Arguments and errors are those of ``joint_entropy``,
    with at least two kernels.

    Reference: Yu et al., IEEE TPAMI 42(11), 2020, https://arxiv.org/abs/1808.07912; Watanabe, "Information theoretical
        analysis of multivariate correlation", IBM Journal of Research and Development 4(1), 1960.
    """
    return total_correlation_of(entropies_of_grams(grams, alpha, validate, least=2), len(grams))


def dual_total_correlation(*grams: Tensor, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """Dual total correlation S(K₁, ..., Kₖ) - Σ S(Kᵢ | all others), what at least two of k kernels share: in nats.

    For two kernels it is their mutual information. For kernels with a constant diagonal it is non-negative at
    alpha = 1, by strong subadditivity. Arguments, return value and errors are those of ``joint_entropy``, with at least
    two kernels.

    Reference: Han, "Nonnegative entropy measures of multivariate symmetric correlations", Information and Control 36,
        1978; of kernels Yu, Alesiani, Yu, Jenssen and Principe, "Measuring Dependence with Matrix-based Entropy
        Functional", AAAI 2021, https://arxiv.org/abs/2101.10160.
    """
    return dual_total_correlation_of(entropies_of_grams(grams, alpha, validate, least=2), len(grams))


def interaction_information(*grams: Tensor, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """Interaction information -Σ (-1)^(k - |T|) S(K_T) over all subsets T of k kernels: (...), in nats, of either sign.

    For two kernels it is their mutual information, for three I(K₁; K₂ | K₃) - I(K₁; K₂): positive where a third kernel
    makes the others share more (synergy), negative where it explains what they share (redundancy). It takes 2^k - 1
    entropies, so k is at most 10. Arguments and errors are those of ``joint_entropy``, with at least two kernels.

    Reference: McGill, "Multivariate information transmission", Psychometrika 19(2), 1954; Jakulin and
        Bratko, "Quantifying and visualizing attribute interactions", 2003, https://arxiv.org/abs/cs/0308002.
    """
    return interaction_information_of(entropies_of_grams(grams, alpha, validate, least=2), len(grams))


def conditions_of(given: Tensor | Sequence[Tensor]) -> tuple[list[Tensor], list[str]]:
    """The conditions as a list of at least one, and the names that errors give them."""
    if not isinstance(given, (tuple, list)):
        return [cast(Tensor, given)], ["given"]
    if not given:
        raise ValueError("given has no kernel: pass one at least, or take the entropy itself.")
    return list(given), [f"given[{i}]" for i in range(len(given))]


def entropies_of_grams(
    grams: Sequence[Tensor], alpha: float, validate: bool | None, names: Sequence[str] = (), *, least: int = 1
) -> Entropies:
    """The joint entropies of the kernels by their numbers, each computed once; checks all arguments."""
    validation.check_entropy_order(alpha)
    if len(grams) < least:
        raise ValueError(f"At least {least} kernels are needed, got {len(grams)}: pass one Gram matrix for each.")
    names = names or [f"k{number}" for number in range(1, len(grams) + 1)]
    full = [
        rescaled(validation.checked_symmetric(gram, name, validate)) for gram, name in zip(grams, names, strict=True)
    ]
    for (first, name), (second, other) in itertools.combinations(zip(grams, names, strict=True), 2):
        validation.check_same_width(first, second, f"{name} and {other}")

    return Entropies(
        functools.partial(_entropy_of_product, full, [gram.dtype for gram in grams], names, alpha, validate)
    )


def _entropy_of_product(
    full: Sequence[Tensor],
    dtypes: Sequence[torch.dtype],
    names: Sequence[str],
    alpha: float,
    validate: bool | None,
    numbers: tuple[int, ...],
) -> Tensor:
    product, dtype, name = full[numbers[0]], dtypes[numbers[0]], names[numbers[0]]
    for number in numbers[1:]:
        product = product * full[number]
        dtype, name = validation.coarsest(dtype, dtypes[number]), f"{name} * {names[number]}"
    rounded = product.detach().to(dtype)  # the tolerance is that of the dtype that was passed
    return renyi_entropy_of(product, rounded, name, alpha=alpha, validate=validate)


def mutual_information_of(entropy: Entropies) -> Tensor:
    """S(0) + S(1) - S(0, 1)."""
    return entropy(0) + entropy(1) - entropy(0, 1)


def normalised_mutual_information_of(entropy: Entropies, by: Normaliser) -> Tensor:
    """The mutual information of kernels 0 and 1 over the normaliser ``by``."""
    first, second = entropy(0), entropy(1)
    if by == "min":
        size = torch.minimum(first, second)
    elif by == "max":
        size = torch.maximum(first, second)
    elif by == "mean":
        size = (first + second) / 2
    elif by == "geometric_mean":
        product = first * second
        size = torch.where(product > 0, torch.where(product > 0, product, 1.0).sqrt(), 0.0)
    elif by == "joint":
        size = entropy(0, 1)
    else:
        raise ValueError(f"by must be 'min', 'max', 'mean', 'geometric_mean' or 'joint', got {by!r}.")
    return _ratio(mutual_information_of(entropy), size)


def entropy_difference_ratio_of(first: Tensor, second: Tensor) -> Tensor:
    """|first - second| over the larger of the two."""
    return _ratio((first - second).abs(), torch.maximum(first, second))


def total_correlation_of(entropy: Entropies, k: int) -> Tensor:
    """Σ S(i) - S(0, ..., k - 1)."""
    everything = tuple(range(k))
    return functools.reduce(operator.add, [entropy(i) for i in everything]) - entropy(*everything)


def dual_total_correlation_of(entropy: Entropies, k: int) -> Tensor:
    """Σ S(all but i) - (k - 1) S(all)."""
    everything = tuple(range(k))
    others = [entropy(*everything[:i], *everything[i + 1 :]) for i in everything]
    return functools.reduce(operator.add, others) - (k - 1) * entropy(*everything)


def interaction_information_of(entropy: Entropies, k: int) -> Tensor:
    """-Σ (-1)^(k - |T|) S(T) over the non-empty subsets T."""
    if k > 10:
        raise ValueError(f"The interaction information of {k} kernels takes 2^{k} - 1 entropies: pass 10 at most.")
    subsets = [[i for i in range(k) if mask >> i & 1] for mask in range(1, 2**k)]
    terms = [entropy(*subset) * (-1.0) ** (k - len(subset) + 1) for subset in subsets]
    return functools.reduce(operator.add, terms)


def _ratio(value: Tensor, size: Tensor) -> Tensor:
    """value / size, and 0 where the size is zero up to rounding."""
    zero = size <= 100 * torch.finfo(size.dtype).eps
    return torch.where(zero, 0.0, value / torch.where(zero, 1.0, size))
