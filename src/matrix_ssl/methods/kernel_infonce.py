"""Kernel-InfoNCE: contrastive learning with an exponential kernel instead of the Gaussian one.

With rows of length one, for each of the 2n views i with partner j:

    loss_γ = mean_i  -log [ k_γ(z_i, z_j) / Σ_k≠i k_γ(z_i, z_k) ],    k_γ(x, y) = exp(-‖x - y‖^γ / τ)

At γ = 2 the kernel is Gaussian, and the loss is that of SimCLR at half the temperature. The paper shows that this is
spectral clustering on the similarity graph of the images, derives exponential kernels from the maximum-entropy
principle, and mixes a Gaussian kernel with one of a different exponent, with weight λ:

    "sum":             λ · loss_γ(z) + (1 - λ) · loss_2(z)
    "concatenation":   λ · loss_γ(first half of z) + (1 - λ) · loss_2(second half of z)

z is scaled to length one before it is halved.

Reference: Tan, Zhang, Yang and Yuan, "Contrastive Learning Is Spectral Clustering On Similarity Graph", ICLR 2024,
https://arxiv.org/abs/2303.15103.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, get_args

import torch
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.errors import ConfigError
from matrix_ssl.losses import check_positive, check_rows, unit_rows
from matrix_ssl.losses.fused import fused, nothing
from matrix_ssl.losses.rows import pull_back
from matrix_ssl.matrix.numerics.precision import full_precision
from matrix_ssl.matrix.numerics.validation import check_constant
from matrix_ssl.methods._base import Method, StepOutput, gather_outputs, view_pairs

Kernel = Literal["exponential", "sum", "concatenation"]

KERNEL: Kernel = "sum"  # the paper's mixture that does not double the width
TEMPERATURE = 0.1  # the code
EXPONENT = 1.0  # the code searches over 0.5 and 1
MIXTURE = 0.5  # the middle of the code's search range
_NEAREST = 1e-6  # rows closer than this have no direction from one to the other, and no gradient
_BLOCK, _LARGE_BLOCK = 1 << 19, 1 << 24  # elements of a block of distances, on a CPU and on other devices


def kernel_infonce_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    kernel: Kernel = KERNEL,
    temperature: float = TEMPERATURE,
    exponent: float = EXPONENT,
    mixture: float = MIXTURE,
) -> Tensor:
    """InfoNCE with exponential kernels over the 2n views of a batch: a scalar in nats.

    The published code bounds the sums of kernels from below by 1e-6; here they are computed as log-sum-exp. Value and
    gradient are computed together, a block of rows at a time, so no 2n x 2n matrix is kept. The loss can be
    differentiated once.

    Args:
        z1, z2: (n, d), outputs for the two views; rows are scaled to length one here. d is even for "concatenation".
        kernel: one of the mixtures, or "exponential" for loss_γ alone.
        temperature: τ > 0.
        exponent: γ in (0, 2].
        mixture: λ in [0, 1], the weight of loss_γ in a mixture.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2; d is odd for "concatenation"; a number
            or the kernel is out of range.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.kernel_infonce import kernel_infonce_loss
        >>> z1, z2 = torch.randn(2, 64, 16, requires_grad=True)
        >>> kernel_infonce_loss(z1, z2, kernel="concatenation").backward()
    """
    check_rows(z1=z1, z2=z2)
    check_constant(temperature=temperature, exponent=exponent, mixture=mixture)
    check_positive(temperature=temperature)
    if not 0 < exponent <= 2 or not 0 <= mixture <= 1:
        raise ValueError(f"exponent must be in (0, 2] and mixture in [0, 1], got {exponent} and {mixture}.")
    if kernel not in get_args(Kernel):
        raise ValueError(f"kernel must be one of {', '.join(get_args(Kernel))}, got {kernel!r}.")
    if kernel == "concatenation" and z1.shape[1] % 2:
        raise ValueError(f"Concatenation halves the outputs: expected an even width, got {z1.shape[1]}.")
    return _kernel_infonce(z1, z2, kernel, temperature, exponent, mixture)[0]


@fused(tensors=2, values=1)
def _kernel_infonce(
    z1: Tensor, z2: Tensor, kernel: str, temperature: float, exponent: float, mixture: float, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = full_precision(torch.cat([z1, z2]))
    rows = unit_rows(outputs)
    both = (mixture, exponent), (1 - mixture, 2.0)
    if kernel == "concatenation":
        halves = zip(rows.chunk(2, dim=1), both, strict=True)
        parts = [_infonce(half, [term], temperature, any(needed)) for half, term in halves]
    else:
        parts = [_infonce(rows, both if kernel == "sum" else [(1.0, exponent)], temperature, any(needed))]
    values, slopes = zip(*parts, strict=True)
    by_z1, by_z2 = (
        pull_back(slope.clone(), z).to(full_precision(own).dtype) if need else nothing(own)
        for slope, z, own, need in zip(torch.cat(slopes, 1).chunk(2), outputs.chunk(2), (z1, z2), needed, strict=True)
    )
    return torch.stack(values).sum(), by_z1, by_z2


def _infonce(
    rows: Tensor, terms: Sequence[tuple[float, float]], temperature: float, needed: bool
) -> tuple[Tensor, Tensor]:
    """Σ weight · loss_γ over terms (weight, γ), of rows (2n, d) of which i and i + n are partners, and its gradient.

    With D² the squared distances, L = -D^γ / τ and P = softmax(L), the slope by D²_ij is H_ij = γ L (P - partner) / 2D²
    over 2n, and the gradient by row i is 2 Σ_j (H_ij + H_ji)(x_i - x_j). The sum is computed as a difference of
    products, of rows about their mean, except that of partners, which may be so near that its digits would be lost.
    """
    m, n = len(rows), len(rows) // 2
    size = max(1, (_BLOCK if rows.device.type == "cpu" else _LARGE_BLOCK) // m)
    centred, squares_of = _squared_distances(rows)
    value, sums, pairs, gradient = rows.new_zeros(()), rows.new_zeros(m), rows.new_zeros(m), torch.zeros_like(rows)
    for start in range(0, m, size):
        end = min(start + size, m)
        squares, slope = squares_of(start, end), rows.new_zeros(())
        partners = (start + n, start - n)  # diagonals of this block
        for weight, exponent in terms:
            logits = squares.pow(exponent / 2).mul_(-1 / temperature)
            logits.diagonal(start).fill_(-torch.inf)  # itself
            p = logits.log_softmax(1)
            value -= weight / m * sum(p.diagonal(offset).sum() for offset in partners)
            if needed:
                p.exp_()
                for offset in partners:
                    p.diagonal(offset).sub_(1)
                slope = p.mul_(logits).div_(squares).mul_(weight * exponent / (2 * m)).add_(slope)
        if needed:
            slope.masked_fill_(squares <= _NEAREST**2, 0.0)
            pairs[start:end] = torch.cat([slope.diagonal(offset) for offset in partners])
            for offset in partners:
                slope.diagonal(offset).zero_()
            sums[start:end] += slope.sum(1)
            sums += slope.sum(0)
            gradient[start:end].addmm_(slope, centred, alpha=-2)
            gradient.addmm_(slope.mT, centred[start:end], alpha=-2)
    gradient.addcmul_(sums.unsqueeze(1), centred, value=2)
    of_pairs = (pairs + pairs.roll(n)).unsqueeze(1)
    return value, gradient.addcmul_(of_pairs, rows - rows.roll(n, 0), value=2)


def _squared_distances(rows: Tensor) -> tuple[Tensor, Callable[[int, int], Tensor]]:
    """Rows (m, d) about their mean, and a function of start and end: ‖x - y‖² of these rows and all rows.

    They are at least ``_NEAREST`` squared, and computed from inner products in float64: in float32, cancellation would
    destroy the digits of small distances, and the differences of all pairs take several times as long. MPS has no
    float64.
    """
    if rows.device.type == "mps":

        def one_by_one(start: int, end: int) -> Tensor:
            mode = "donot_use_mm_for_euclid_dist"
            return torch.cdist(rows[start:end], rows, compute_mode=mode).clamp_min(_NEAREST).square()

        return rows - rows.mean(0), one_by_one
    precise = rows.double()
    precise = precise - precise.mean(0)
    squares, others = precise.square().sum(1), -2 * precise.mT

    def by_products(start: int, end: int) -> Tensor:
        block = torch.addmm(squares, precise[start:end], others).add_(squares[start:end].unsqueeze(1))
        return block.clamp_min_(_NEAREST**2).to(rows.dtype)

    return precise.to(rows.dtype), by_products


class KernelInfoNCE(Method):
    """An encoder and a two-layer projector, trained with ``kernel_infonce_loss``.

    Args:
        hidden_dim: width of the projector's hidden layer.
        output_dim: d, width of the outputs; must be even for the kernel "concatenation".
        kernel, temperature, exponent, mixture: see ``kernel_infonce_loss``.
    """

    variants = ({"temperature": 0.4}, {"exponent": 0.5}, {"kernel": "concatenation"})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 2048,  # the code
        output_dim: config.PositiveInt = 128,  # the code, which doubles it for the concatenation
        kernel: Kernel = KERNEL,
        temperature: config.PositiveFloat = TEMPERATURE,
        exponent: Annotated[float, config.Gt(0), config.Le(2)] = EXPONENT,
        mixture: config.Fraction = MIXTURE,
    ):
        super().__init__()
        if kernel == "concatenation" and output_dim % 2:
            raise ConfigError(f"method.output_dim={output_dim}: the kernel 'concatenation' needs an even number.")
        self.encoder = encoder
        self.projector = networks.mlp(feature_dim, hidden_dim, output_dim, output_bias=False)
        self.kernel = kernel
        self.temperature = temperature
        self.exponent = exponent
        self.mixture = mixture

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z = [self.projector(feature) for feature in features]
        outputs = gather_outputs(*z)
        losses = [
            kernel_infonce_loss(
                outputs[a],
                outputs[b],
                kernel=self.kernel,
                temperature=self.temperature,
                exponent=self.exponent,
                mixture=self.mixture,
            )
            for a, b in view_pairs(views)
        ]
        return StepOutput(torch.stack(losses).mean(), {}, features[0].detach(), z[0].detach(), z[1].detach())

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """Pre-training on ImageNet with SimCLR's values; the paper trains on CIFAR and Tiny ImageNet."""
        view = config.symmetric_view(smallest_crop=0.08, strength=1.0)  # the code: SimCLR's
        optimizer = config.OptimizerConfig(
            name="lars",  # the code has LARS and Adam
            learning_rate=0.3,  # SimCLR's; the code searches from 0.01 to 10
            momentum=0.9,  # the code
            weight_decay=1e-6,  # the code
            warmup_epochs=10,  # the code
        )
        # epochs: the code; batch: SimCLR's
        return dataclasses.replace(base, views=(view, view), optimizer=optimizer, epochs=100, batch_size=4096)
