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
from typing import Annotated, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matrix_ssl import config, networks
from matrix_ssl.errors import ConfigError
from matrix_ssl.losses import check_positive, check_rows, in_full_precision, unit_rows
from matrix_ssl.methods._base import Method, StepOutput, gather_outputs, view_pairs

Kernel = Literal["exponential", "sum", "concatenation"]

KERNEL: Kernel = "sum"  # the paper's mixture that does not double the width
TEMPERATURE = 0.1  # the code
EXPONENT = 1.0  # the code searches over 0.5 and 1
MIXTURE = 0.5  # the middle of the code's search range
_NEAREST = 1e-6  # rows closer than this have no direction from one to the other, and no gradient


@in_full_precision
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

    The published code bounds the sums of kernels from below by 1e-6; here they are computed as log-sum-exp.

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
    check_positive(temperature=temperature)
    if not 0 < exponent <= 2 or not 0 <= mixture <= 1:
        raise ValueError(f"exponent must be in (0, 2] and mixture in [0, 1], got {exponent} and {mixture}.")
    rows = unit_rows(torch.cat([z1, z2]))
    if kernel == "exponential":
        return _infonce(_distances(rows), temperature, exponent)
    if kernel == "sum":
        first = second = _distances(rows)
    elif kernel == "concatenation":
        if rows.shape[1] % 2:
            raise ValueError(f"Concatenation halves the outputs: expected an even width, got {rows.shape[1]}.")
        first, second = (_distances(half) for half in rows.chunk(2, dim=1))
    else:
        raise ValueError(f"kernel must be one of {', '.join(get_args(Kernel))}, got {kernel!r}.")
    return mixture * _infonce(first, temperature, exponent) + (1 - mixture) * _infonce(second, temperature, 2.0)


def _distances(rows: Tensor) -> Tensor:
    """Distances ‖x - y‖ (m, m) between all pairs of rows (m, d), at least ``_NEAREST``.

    Computed from inner products in float64: in float32, cancellation would destroy the digits of small distances, and
    the differences of all pairs take several times as long. MPS has no float64.
    """
    if rows.device.type == "mps":
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").clamp_min(_NEAREST)
    precise = rows.double()
    squares = precise.square().sum(1)
    squared = squares[:, None] + squares - 2 * precise @ precise.mT
    return squared.clamp_min(_NEAREST**2).sqrt().to(rows.dtype)


def _infonce(distances: Tensor, temperature: float, exponent: float) -> Tensor:
    """The loss for one kernel from the distances (2n, 2n) between rows, of which i and i + n are partners."""
    itself = torch.eye(len(distances), dtype=torch.bool, device=distances.device)
    logits = (-(distances**exponent) / temperature).masked_fill(itself, -torch.inf)
    partners = torch.arange(len(distances), device=distances.device).roll(len(distances) // 2)
    return F.cross_entropy(logits, partners)


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
