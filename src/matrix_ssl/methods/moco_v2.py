"""MoCo v2: recognise the key of the same image among a queue of keys from earlier batches.

A student encodes the query, and its moving average encodes the key. With rows of length one and temperature τ, for a
query q, its key k₊ and the keys k of the queue:

    loss = -log [ exp(q·k₊ / τ) / (exp(q·k₊ / τ) + Σ_k exp(q·k / τ)) ]

The first view is the query and the second the key, so a step does half the work of the other methods;
``queries="both"`` adds the reverse order. With more than two views, the last global view is the key and all others are
queries; with ``queries="both"``, every global view is a key for all others.

BatchNorm lets a query recognise the key that was normalised together with it. The published code therefore shuffles the
rows of the keys across GPUs; here BatchNorm is synchronised, so its statistics are those of the whole batch, in which a
single image leaves little trace.

Reference: He, Fan, Wu, Xie and Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR
2020, equation 1, https://arxiv.org/abs/1911.05722; Chen, Fan, Girshick and He, "Improved Baselines with Momentum
Contrastive Learning", 2020, https://arxiv.org/abs/2003.04297.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.losses import check_positive, check_rows, in_full_precision, unit_rows
from matrix_ssl.methods._base import StepOutput, TeacherMethod, gather_outputs, global_views, mean_over_processes

TEMPERATURE = 0.2  # section 3 of v2


@in_full_precision
def moco_v2_loss(q: Tensor, k: Tensor, queue: Tensor, *, temperature: float = TEMPERATURE) -> Tensor:
    """InfoNCE of queries against their keys and a queue of other keys, averaged over the rows: a scalar in nats.

    The loss itself stops no gradient: keys and queue must come from a teacher without gradient, or be detached.

    Args:
        q: (n, d), queries: the student's outputs.
        k: (n, d), keys: the teacher's outputs for the other view of the same images.
        queue: (m, d), keys of other images, m ≥ 1. The rows of all three are scaled to length one here.
        temperature: τ > 0.

    Raises:
        ValueError: shapes of q and k differ or are not (n, d) with n ≥ 2; the queue is not (m, d); τ is not positive.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.moco_v2 import moco_v2_loss
        >>> q, k = torch.randn(64, 16, requires_grad=True), torch.randn(64, 16)
        >>> queue = torch.randn(512, 16)
        >>> moco_v2_loss(q, k, queue, temperature=0.2).backward()
    """
    check_rows(q=q, k=k)
    check_positive(temperature=temperature)
    if queue.ndim != 2 or queue.shape[1] != q.shape[1] or not len(queue):
        raise ValueError(
            f"Expected a queue of shape (m, {q.shape[1]}) with m ≥ 1, a row a key, got {tuple(queue.shape)}."
        )
    q = unit_rows(q)
    positive = (q * unit_rows(k)).sum(1) / temperature
    negative = q @ unit_rows(queue).mT / temperature
    return (torch.logaddexp(positive, negative.logsumexp(1)) - positive).mean()


class MoCoV2(TeacherMethod):
    """A student trained with ``moco_v2_loss``, its moving average for the keys, and their queue.

    Args:
        hidden_dim: width of the projector's hidden layer.
        output_dim: d, width of the outputs.
        temperature: see ``moco_v2_loss``.
        queue_size: number of keys in the queue, which starts with random directions.
        teacher_momentum: constant over the training.
        queries: which views are queries.
    """

    queue: Tensor
    position: Tensor
    variants = (
        {"queries": "both"},
        {"queries": "both", "teacher_momentum": 0.995},  # keys in the queue are comparable only if the teacher is slow
        {"queries": "both", "teacher_momentum": 0.995, "temperature": 0.1},
    )

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 2048,  # section 3 of v2
        output_dim: config.PositiveInt = 128,  # section 3.3 of v1
        temperature: config.PositiveFloat = TEMPERATURE,
        queue_size: config.PositiveInt = 4096,  # 65536 for ImageNet, see the recipe; smaller datasets need fewer
        teacher_momentum: config.Fraction = 0.999,  # section 4.1 of v1
        queries: Literal["first", "both"] = "first",  # algorithm 1 of v1
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = networks.mlp(feature_dim, hidden_dim, output_dim, hidden_norm=False, hidden_bias=True)
        self.add_teacher(teacher_momentum)
        self.register_buffer("queue", unit_rows(torch.randn(queue_size, output_dim)))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))  # index of the oldest key
        self.temperature = temperature
        self.queries = queries
        self._newest: Tensor | None = None  # keys that ``after_step`` puts into the queue

    def forward(self, *views: Tensor) -> StepOutput:
        known = global_views(views)
        places = known if self.queries == "both" else [known[-1]]  # of the keys
        features = self.encoder(views[0])
        q = {0: self.projector(features)}
        k = {place: self.teach(views[place]) for place in places}
        for place in range(1, len(views)):
            if set(places) - {place}:  # a key of a different view
                q[place] = self.projector(self.encoder(views[place]))
        losses = [self.loss(q[query], k[key]) for query in q for key in k if query != key]
        # the queue is part of this step's graph, so it changes after the step; the order is that of a single process
        self._newest = torch.cat(gather_outputs(*k.values()))
        loss = mean_over_processes(torch.stack(losses).mean())
        return StepOutput(loss, {}, features.detach(), q[0].detach(), k[places[-1]])

    def loss(self, q: Tensor, k: Tensor) -> Tensor:
        """The loss of this process's queries (n_local, d) and keys (n_local, d)."""
        return moco_v2_loss(q, k, self.queue, temperature=self.temperature)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Updates the teacher and replaces the oldest keys in the queue by the newest."""
        super().after_step(progress)
        if self._newest is not None:
            size = len(self.queue)
            keys = unit_rows(self._newest[-size:]).to(self.queue.dtype)
            places = (self.position + torch.arange(len(keys), device=keys.device)) % size
            self.queue[places] = keys
            self.position.add_(len(keys)).remainder_(size)
            self._newest = None

    def schedule(self, progress: float) -> dict[str, float]:
        """The teacher's momentum, which is constant."""
        return {"teacher_momentum": self.teacher_momentum}

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """The paper's pre-training on ImageNet, 67.5 % linear accuracy after 200 epochs (table 1 of v2)."""
        view = config.symmetric_view()  # section 3 of v2
        options = {**base.method.options, "queue_size": 65536}  # section 4.1 of v1
        method = dataclasses.replace(base.method, options=options)
        optimizer = config.OptimizerConfig(
            name="sgd",
            learning_rate=0.03,  # section 4.1 of v1, for a batch of 256
            momentum=0.9,  # section 4.1 of v1
            weight_decay=1e-4,  # section 4.1 of v1
            warmup_epochs=0,  # the code: none
        )
        # epochs: table 1 of v2; batch: section 4.1 of v1
        return dataclasses.replace(
            base, views=(view, view), method=method, optimizer=optimizer, epochs=200, batch_size=256
        )
