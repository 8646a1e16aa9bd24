"""Accuracy during training: a linear classifier and nearest neighbours on held-out images.

The classifier is trained on the detached features of every training batch, with its own optimizer and without random
numbers. Both are tested on a fifth of the training images, whose labels neither has seen. The encoder's weights and
losses are identical bit for bit with and without it.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from matrix_ssl.config import DataConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.sources import choose_subset
from matrix_ssl.errors import DataError
from matrix_ssl.evaluate.features import Features, extract
from matrix_ssl.evaluate.probes.accuracy import accuracy
from matrix_ssl.evaluate.probes.knn import knn_predict
from matrix_ssl.evaluate.trained.classifier import linear_head
from matrix_ssl.evaluate.trained.label_subsets import stratified
from matrix_ssl.training.diagnostics import information
from matrix_ssl.training.task import Observer

_LEARNED_FROM = 0.8
_BANK, _QUERIES = 10_000, 5_000  # maximum numbers of images to choose neighbours from, and to classify
_NEIGHBOURS = 20
_RATE = 1e-2
_ORDER = 0x0B5E  # random stream that samples the images
_NOISE = 2.0  # standard deviations beyond which a difference of two accuracies is more than chance


def ask_neighbours(
    encoder: nn.Module, bank: Source, queries: Source, data: DataConfig, *, device: torch.device
) -> tuple[Tensor, Features]:
    """Labels (n,) of the ``queries`` by 20 nearest neighbours from ``bank``, and their features under the name ""."""
    x, test = (extract({"": encoder}, images, data, device=device) for images in (bank, queries))
    return knn_predict(x.vectors[""], x.labels, test.vectors[""], k=min(_NEIGHBOURS, len(x.labels))), test


class OnlineEvaluation(Observer):
    """Writes ``online_train``, ``online_linear`` and ``online_knn``, each in [0, 1], into the metrics of a run.

    ``online_train`` is the classifier's accuracy on training images just before it is trained on them. The others are
    measured about twenty times during training, on held-out images prepared as for evaluation. The features are scaled
    by a BatchNorm without parameters, so one learning rate of Adam suits all encoders. At the same points,
    ``online_mir`` and ``online_hdr``, in [0, 1], measure what these features of held-out images share with the
    classifier's rows of their classes (Song et al., ICML 2024).

    If training started from existing weights, the nearest neighbours are also measured before the first step. An alarm
    at the end then says whether they became worse on the same images: whether the lost images exceed the gained ones by
    more than two standard deviations of their difference, the square root of their number (McNemar, Psychometrika 12,
    1947).

    Raises:
        DataError: the images have no labels, or there are too few to hold out a fifth.
    """

    moments = 20

    def __init__(self, source: Source, data: DataConfig, *, device: torch.device):
        labels, classes = source.labelled()
        learned = stratified(source, _LEARNED_FROM)
        self._may_learn = np.zeros(len(source), dtype=bool)
        self._may_learn[learned] = True
        held_out = np.flatnonzero(~self._may_learn)
        if not len(held_out):
            raise DataError(f"--online: {source.name!r} has too few images to hold a fifth of them out.")
        self._bank, self._queries = (
            choose_subset(source.subset(indices), most, seed=_ORDER)
            for indices, most in ((learned, _BANK), (held_out, _QUERIES))
        )
        self._data, self._device = data, device
        self._labels = torch.from_numpy(labels).to(device)
        self._classes = len(classes)
        self._probe: nn.Sequential | None = None  # created when the width of the features is known
        self._counts = torch.zeros(2, device=device)  # right answers, answers
        self._start_right: Tensor | None = None  # whether the neighbours of each held-out image, (n,), were right
        self._right: Tensor | None = None  # the same now

    @torch.enable_grad()
    def learn(self, features: Tensor, shown: NDArray[np.int64]) -> None:
        rows = np.flatnonzero(self._may_learn[shown])
        if len(rows) < 2:  # BatchNorm needs two
            return
        probe = self._probe or self._start(features.shape[1])
        labels = self._labels[torch.from_numpy(shown[rows]).to(self._device)]
        scores = probe.train()(features[torch.from_numpy(rows).to(self._device)].float())
        self._optimizer.zero_grad()
        F.cross_entropy(scores, labels).backward()
        self._optimizer.step()
        self._counts += torch.stack([(scores.argmax(1) == labels).sum(), torch.tensor(len(rows), device=self._device)])

    def _start(self, width: int) -> nn.Sequential:
        head = linear_head(width, self._classes, seed=0)
        self._probe = nn.Sequential(nn.BatchNorm1d(width, affine=False), head).to(self._device)
        self._optimizer = torch.optim.Adam(head.parameters(), lr=_RATE)
        return self._probe

    def recent(self) -> dict[str, float]:
        right, answers = self._counts.tolist()
        self._counts.zero_()
        return {"online_train": right / answers} if answers else {}

    def observe_start(self, encoder: nn.Module) -> dict[str, float]:
        values = self.observe(encoder)
        self._start_right = self._right
        return values

    def observe(self, encoder: nn.Module) -> dict[str, float]:
        nearest, test = ask_neighbours(encoder, self._bank, self._queries, self._data, device=self._device)
        self._right, knn = nearest == test.labels, accuracy(nearest, test.labels)
        if self._probe is None:
            return {"online_knn": knn}
        scaled = self._probe.eval()[0](test.vectors[""].to(self._device))
        head = self._probe[1]
        assert isinstance(head, nn.Linear)
        shared = information(scaled, head.weight[test.labels.to(self._device)])
        linear = accuracy(head(scaled).argmax(1).cpu(), test.labels)
        return {"online_knn": knn, "online_linear": linear} | {f"online_{name}": x for name, x in shared.items()}

    def verdict(self) -> list[str]:
        if self._start_right is None or self._right is None:
            return []
        before, now = (right.double().mean().item() for right in (self._start_right, self._right))
        lost, gained = (
            int((a & ~b).sum()) for a, b in ((self._start_right, self._right), (self._right, self._start_right))
        )
        if lost - gained <= _NOISE * math.sqrt(lost + gained):
            return []
        return [
            f"Worse than the start: 20 nearest neighbours were right on {before:.1%} of the held-out images before the "
            f"first step and are on {now:.1%} now. Keep the weights of the start, or try a lower "
            "optimizer.learning_rate or optimizer.layer_decay, fewer epochs or more images."
        ]

    def state_dict(self) -> dict[str, Tensor]:
        start = {} if self._start_right is None else {"start": self._start_right}
        if self._probe is None:
            return start
        probe = {f"probe.{name}": value for name, value in self._probe.state_dict().items()}
        moments = self._optimizer.state_dict()["state"]
        return (
            start
            | probe
            | {"counts": self._counts}
            | {f"{i}.{k}": v for i, one in moments.items() for k, v in one.items()}
        )

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._start_right = state.get("start")
        probe = {name.removeprefix("probe."): value for name, value in state.items() if name.startswith("probe.")}
        if not probe:
            return
        self._start(probe["1.weight"].shape[1]).load_state_dict(probe)
        self._counts.copy_(state["counts"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            index, _, key = name.partition(".")
            if index.isdigit():
                moments.setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": moments})
