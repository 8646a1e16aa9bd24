"""SwAV: the cluster of one view is predicted from another view, and the clusters of a batch are equal in size.

With rows of length one, K prototypes c of length one, and the prediction p = softmax(zᵀc / τ):

    loss = mean over the views v and the global views g ≠ v of   -Σ_k q_gk log p_vk
    q    = the rows of Diag(a) exp(zᵀc / ε) Diag(b) that belong to g, with columns of equal sums (Sinkhorn-Knopp)

Equal sums keep the images from all falling into one cluster; the codes q are constants. For batches with fewer images
than prototypes, a queue of earlier outputs joins the batch when codes are computed, after a part of the training. The
paper adds small views, from which codes are predicted but which have no codes: see the setting ``views``.

Differences from the published code: codes are computed over the batch of all processes and start from logarithms, so
that no score can overflow; there is one queue, of the first view, instead of one for each global view; the gradient
with respect to a prototype has no component along it, which the normalisation after a step would remove.

Reference: Caron, Misra, Mairal, Goyal, Bojanowski and Joulin, "Unsupervised Learning of Visual Features by Contrasting
Cluster Assignments", NeurIPS 2020, equations 1 to 5, https://arxiv.org/abs/2006.09882; Cuturi, "Sinkhorn Distances",
NeurIPS 2013.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from matrix_ssl import config, distributed, networks
from matrix_ssl.losses import check_positive, in_full_precision, unit_rows
from matrix_ssl.matrix.numerics.precision import without_autocast
from matrix_ssl.methods._base import (
    Method,
    StepOutput,
    check_views,
    cross_entropy_of_views,
    gather_outputs,
    global_views,
    mean_over_processes,
)

TEMPERATURE = 0.1  # the code
REGULARISATION = 0.05  # the code: ε; its README recommends 0.03 if training collapses
ITERATIONS = 3  # the code


@in_full_precision
def sinkhorn(scores: Tensor, *, regularisation: float = REGULARISATION, iterations: int = ITERATIONS) -> Tensor:
    """Codes of scores (m, K): rows that sum to one, with nearly equal column sums; without gradient.

    Args:
        scores: inner products with the prototypes.
        regularisation: ε > 0; a larger one makes the codes softer.
        iterations: Sinkhorn-Knopp iterations, each over columns and then rows; 0 is a softmax of every row.

    Raises:
        ValueError: scores are not a matrix; a number is out of range.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.swav import sinkhorn
        >>> codes = sinkhorn(torch.randn(64, 10).clamp(-1, 1))
    """
    check_positive(regularisation=regularisation)
    if scores.ndim != 2 or iterations < 0:
        raise ValueError(f"Expected scores (m, K) and iterations ≥ 0, got {tuple(scores.shape)} and {iterations}.")
    logarithms = scores.detach() / regularisation
    if iterations == 0:
        return logarithms.softmax(1)
    codes = logarithms.log_softmax(0).softmax(1)  # from here on no column's sum is below 1/(mK), whatever the scores
    for _ in range(iterations - 1):
        codes /= codes.sum(0)
        codes /= codes.sum(1, keepdim=True)
    return codes


@in_full_precision
def swav_loss(
    *scores: Tensor,
    codes: Iterable[Tensor] | None = None,
    temperature: float = TEMPERATURE,
    regularisation: float = REGULARISATION,
) -> Tensor:
    """Cross-entropy of each view's predictions with the codes of all other views, averaged: a scalar in nats.

    Args:
        scores: (n, K) each, inner products of a view's rows, scaled to length one, with the prototypes.
        codes: (n, K) each, codes of the first views; by default ``sinkhorn`` computes them for every view.
        temperature: τ > 0.
        regularisation: see ``sinkhorn``.

    Raises:
        ValueError: shapes differ or are not (n, K) with n ≥ 2; there is only one view; a number is out of range.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.swav import swav_loss
        >>> s1, s2 = torch.randn(2, 64, 10, requires_grad=True)
        >>> swav_loss(s1, s2).backward()
    """
    check_views(scores)
    check_positive(temperature=temperature)
    if codes is None:
        codes = (sinkhorn(view, regularisation=regularisation) for view in scores)
    targets = list(codes)
    if not 1 <= len(targets) <= len(scores) or any(target.shape != scores[0].shape for target in targets):
        raise ValueError(
            f"Expected codes of 1 to {len(scores)} views, {tuple(scores[0].shape)} each as the scores, "
            f"got {[tuple(target.shape) for target in targets]}."
        )
    return cross_entropy_of_views([view / temperature for view in scores], targets)


class SwAV(Method):
    """An encoder, a two-layer projector and prototypes, trained with ``swav_loss``.

    Args:
        hidden_dim: width of the projector's hidden layer.
        output_dim: d, width of the outputs.
        prototypes: K, number of clusters.
        temperature, regularisation, iterations: see ``swav_loss`` and ``sinkhorn``.
        frozen: fraction of the training, from its start, during which the prototypes are frozen, in [0, 1].
        queue_size: number of earlier outputs that join the batch when codes are computed; 0: no queue.
        queue_start: fraction of the training after which the queue is used, in [0, 1].
    """

    queue: Tensor
    position: Tensor
    variants = ({"prototypes": 300}, {"prototypes": 100}, {"prototypes": 300, "regularisation": 0.03})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 2048,  # the code
        output_dim: config.PositiveInt = 128,  # the code
        prototypes: config.PositiveInt = 3000,  # the code
        temperature: config.PositiveFloat = TEMPERATURE,
        regularisation: config.PositiveFloat = REGULARISATION,
        iterations: config.NonNegativeInt = ITERATIONS,
        frozen: config.Fraction = 0.01,  # the code: an epoch, here of 100
        queue_size: config.NonNegativeInt = 0,  # the code; 3840 with a batch of 256
        queue_start: config.Fraction = 0.075,  # the code: 15 epochs, here of 200
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = networks.mlp(feature_dim, hidden_dim, output_dim, hidden_bias=True)
        self.centroids = nn.Linear(output_dim, prototypes, bias=False)
        self.register_buffer("queue", torch.zeros(queue_size, output_dim))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))  # number of outputs ever queued
        self.temperature = temperature
        self.regularisation = regularisation
        self.iterations = iterations
        self.frozen = frozen
        self.queue_start = queue_start
        self._progress = 1.0
        self._through = 0  # ``position`` on the host, read without waiting for the device
        self.register_load_state_dict_post_hook(_read_position)
        self._newest: Tensor | None = None  # outputs that ``after_step`` puts into the queue
        self._normalise()

    def before_step(self, step: int, total_steps: int) -> None:
        self._progress = step / total_steps

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z = [unit_rows(self.projector(feature)) for feature in features]
        prototypes = unit_rows(self.centroids.weight)
        if self._progress < self.frozen:
            prototypes = prototypes.detach() + 0 * prototypes  # zero gradient: every process must use it
        places = global_views(views)
        order = [*places, *(place for place in range(len(views)) if place not in places)]
        loss = self.loss([z[place] for place in order], prototypes, len(places))
        return StepOutput(mean_over_processes(loss), {}, features[0].detach(), z[0].detach(), z[1].detach())

    def loss(self, z: list[Tensor], prototypes: Tensor, count: int) -> Tensor:
        """The loss of this process's rows, (n_local, d) per view; the first ``count`` views have codes."""
        with without_autocast(prototypes):
            with torch.no_grad():
                whole = gather_outputs(*(rows.detach() for rows in z[:count]))
                codes = [self.codes(rows @ prototypes.mT, len(z[0]), prototypes) for rows in whole]
            self._newest = whole[0]
            scores = [rows @ prototypes.mT for rows in z]
        return swav_loss(*scores, codes=codes, temperature=self.temperature)

    def codes(self, scores: Tensor, local: int, prototypes: Tensor) -> Tensor:
        """Codes of this process's rows, from one view's scores on all processes and the queue."""
        n = len(scores)
        if self._progress >= self.queue_start and 0 < len(self.queue) <= self._through:
            scores = torch.cat([scores, self.queue.to(scores) @ prototypes.mT])
        codes = sinkhorn(scores, regularisation=self.regularisation, iterations=self.iterations)[:n]
        return codes[distributed.rank() * local :][:local]

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Scales the prototypes to length one and replaces the oldest outputs in the queue by the newest."""
        self._normalise()
        if self._newest is not None and len(self.queue):
            newest = self._newest[-len(self.queue) :].to(self.queue)
            places = (self.position + torch.arange(len(newest), device=newest.device)) % len(self.queue)
            self.queue[places] = newest
            self.position.add_(len(newest))
            self._through += len(newest)
        self._newest = None

    @torch.no_grad()
    def _normalise(self) -> None:
        self.centroids.weight.copy_(unit_rows(self.centroids.weight))

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """The paper's pre-training on ImageNet, 72.1 % linear accuracy after 100 epochs (the code's README)."""
        view = config.symmetric_view(smallest_crop=0.14, strength=1.0)  # the code
        whole = dataclasses.replace(view, count=2)
        local = dataclasses.replace(view, count=6, image_size=96, crop_scale=(0.05, 0.14))  # the code's README
        optimizer = config.OptimizerConfig(
            name="lars",  # the code
            learning_rate=0.3,  # the code: 4.8 for its batch
            momentum=0.9,  # the code
            weight_decay=1e-6,  # the code
            warmup_epochs=10,  # the code
        )
        # epochs and batch: the code's README
        return dataclasses.replace(base, views=(whole, local), optimizer=optimizer, epochs=100, batch_size=4096)


def _read_position(method: SwAV, _: Any) -> None:
    """Updates the host's count after a state dict has been loaded."""
    method._through = int(method.position)
