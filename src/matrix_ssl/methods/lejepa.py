"""LeJEPA: the views of an image agree, and the outputs of a batch follow a standard normal distribution.

    loss = (1 - λ) · mean over views and entries of (z_v - z̄)²  +  λ · mean over views of SIGReg(z_v)

where z̄ is the mean of an image's global views, that is, all views except the smaller ones that the paper adds.
SIGReg, sketched isotropic Gaussian regularisation, projects the outputs onto random directions and compares the
empirical characteristic function of each projection with that of the standard normal, using the Epps-Pulley statistic.
There is no teacher, no stop-gradient and no predictor.

Reference: Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics",
2025, https://arxiv.org/abs/2511.08544; Epps and Pulley, "A test for normality based on the empirical characteristic
function", Biometrika 1983.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.data.randomness import hash_integers
from matrix_ssl.losses import check_positive, in_full_precision
from matrix_ssl.matrix.numerics.autograd import differentiable_once
from matrix_ssl.methods._base import Method, StepOutput, gather_outputs, global_views

SLICES = 1024  # the paper's recommendation (not verified); 256 in the minimal example
KNOTS = 17  # the code


@in_full_precision
def sigreg_loss(
    z: Tensor,
    *,
    slices: int = SLICES,
    knots: int = KNOTS,
    largest_frequency: float = 3.0,
    directions: Tensor | None = None,
) -> Tensor:
    """Distance of the rows from a standard normal: the Epps-Pulley statistic, averaged over random directions.

    For the projections x = z a onto a direction a of length one, with φ(t) = exp(-t²/2):

        T(a) = n ∫ |mean_i exp(i t x_i) - φ(t)|² φ(t) dt,     t from -largest_frequency to largest_frequency

    computed with the trapezoidal rule on [0, largest_frequency] and doubled. Value and gradient are computed together,
    one frequency at a time, so no tensor of n x slices x knots is kept. The loss can be differentiated once.

    Args:
        z: (..., n, d), outputs; leading dimensions, such as views, are averaged over.
        slices: number of random directions, drawn from PyTorch's generator.
        knots: number of frequencies, at least 2.
        largest_frequency: > 0.
        directions: (d, slices), columns of any nonzero length, to be used instead of random directions.

    Returns:
        A scalar, 0 or more; about √(2π)(1 - 1/√3) = 1.06 for a batch of standard normal rows of any size.

    Raises:
        ValueError: z has no rows or no columns; a number is out of range; the directions do not have d rows.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.lejepa import sigreg_loss
        >>> z = torch.randn(64, 16, requires_grad=True)
        >>> sigreg_loss(z, slices=256).backward()
    """
    if z.ndim < 2 or 0 in z.shape:
        raise ValueError(f"Expected outputs of shape (..., n, d), got {tuple(z.shape)}.")
    if slices < 1 or knots < 2:
        raise ValueError(f"slices must be at least 1 and knots at least 2, got {slices} and {knots}.")
    check_positive(largest_frequency=largest_frequency)
    if directions is None:
        directions = torch.randn(z.shape[-1], slices, dtype=z.dtype, device=z.device)
    if directions.ndim != 2 or len(directions) != z.shape[-1]:
        raise ValueError(f"Expected directions of shape ({z.shape[-1]}, slices), got {tuple(directions.shape)}.")
    directions = directions.to(z) / torch.linalg.vector_norm(directions.to(z), dim=0)
    return _EppsPulley.apply(z @ directions, knots, largest_frequency)


class _EppsPulley(torch.autograd.Function):
    """The mean statistic of x (..., n, slices) and its gradient, computed from powers of exp(i Δt x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, knots: int, largest_frequency: float) -> Tensor:
        n = x.shape[-2]
        step = largest_frequency / (knots - 1)
        base = torch.polar(torch.ones_like(x), x * step)
        power = torch.ones_like(base)
        value = x.new_zeros(())
        gradient = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        # at each frequency t: the mean of exp(itx), its distance from exp(-t²/2), and its gradient with respect to x
        for k in range(knots):
            t, weight = step * k, step if k in (0, knots - 1) else 2 * step
            target = torch.exp(x.new_full((), -t * t / 2))
            error = power.mean(-2, keepdim=True) - target
            value = value + weight * target * (error.real.square() + error.imag.square()).sum()
            if gradient is not None:
                # d|error|²/dx_i = 2/n Re(conj(error) · i t exp(i t x_i)) = -2t/n Im(conj(error) · exp(i t x_i))
                gradient -= (2 * t * weight) * target * (error.conj() * power).imag
            power = power * base
        parts = x.numel() // n  # views times directions
        if gradient is not None:
            ctx.save_for_backward(gradient / parts)  # the factors n and 1/n of the statistic and of the mean cancel
        return value * (n / parts)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None


class LeJEPA(Method):
    """An encoder and a three-layer projector; no teacher and no predictor.

    Args:
        hidden_dim: width of the projector's two hidden layers.
        output_dim: d, width of the outputs.
        regularisation_weight: λ in [0, 1].
        slices, knots: see ``sigreg_loss``; the directions depend only on the run's seed and the step, and are the
            same on all processes.
    """

    variants = ({"regularisation_weight": 0.02}, {"regularisation_weight": 0.1}, {"regularisation_weight": 0.01})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 2048,  # the code's minimal example
        output_dim: config.PositiveInt = 128,  # the code's minimal example: 16 to 128
        regularisation_weight: config.Fraction = 0.05,  # the paper (not verified); 0.02 in the minimal example
        slices: config.PositiveInt = SLICES,
        knots: Annotated[int, config.Ge(2)] = KNOTS,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = networks.mlp(feature_dim, hidden_dim, hidden_dim, output_dim, hidden_bias=True)
        self.regularisation_weight = regularisation_weight
        self.slices = slices
        self.knots = knots
        self._step = 0

    def before_step(self, step: int, total_steps: int) -> None:
        self._step = step

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z = [self.projector(feature) for feature in features]
        outputs = torch.stack(gather_outputs(*z)).to(torch.promote_types(z[0].dtype, torch.float32))
        invariance = (outputs - outputs[global_views(views)].mean(0)).square().mean()
        # depends only on seed and step: the same on all processes and in a resumed run
        generator = torch.Generator().manual_seed(int(hash_integers(self.seed, self._step) >> 1))
        directions = torch.randn(outputs.shape[-1], self.slices, generator=generator).to(outputs)
        normality = sigreg_loss(outputs, knots=self.knots, directions=directions)
        loss = (1 - self.regularisation_weight) * invariance + self.regularisation_weight * normality
        terms = {"invariance": invariance.detach(), "sigreg": normality.detach()}
        return StepOutput(loss, terms, features[0].detach(), z[0].detach(), z[1].detach())

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """Pre-training on ImageNet with the paper's optimizer; the paper's own run has more views and a ViT."""
        views = config.asymmetric_views(smallest_crop=0.08)  # not verified: the minimal example has one policy for all
        optimizer = config.OptimizerConfig(
            name="adamw",  # the code's README
            learning_rate=2.5e-4,  # the code's README: 5e-4, its batch of 512 not verified
            weight_decay=5e-4,  # the code's README, for ResNets; 5e-2 for ViTs
            warmup_epochs=10,  # not verified
        )
        # epochs: the paper's tables (not verified); batch: not verified
        return dataclasses.replace(base, views=views, optimizer=optimizer, epochs=100, batch_size=512)
