"""Accuracy while the encoder is still being trained: a linear classifier and nearest neighbours on held-out images.

The classifier is trained on the features of every training batch, whose gradient is cut off, with its own optimizer
and no random numbers. Both are tested on a fifth of the training images whose labels neither has seen. Weights and
losses of the encoder are the same bits with and without.
"""

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
from matrix_ssl.training.task import Observer

_LEARNED_FROM = 0.8
_BANK, _QUERIES = 10_000, 5_000  # at most: images to choose neighbours from, and images to classify
_NEIGHBOURS = 20
_RATE = 1e-2
_ORDER = 0x0B5E  # coordinate of the choice of images


def neighbour_accuracy(
    encoder: nn.Module, bank: Source, queries: Source, data: DataConfig, *, device: torch.device
) -> tuple[float, Features]:
    """Accuracy of 20 nearest neighbours from ``bank``, and the features, by the name "", of the ``queries``."""
    x, test = (extract({"": encoder}, images, data, device=device) for images in (bank, queries))
    predicted = knn_predict(x.vectors[""], x.labels, test.vectors[""], k=min(_NEIGHBOURS, len(x.labels)))
    return accuracy(predicted, test.labels), test


class OnlineEvaluation(Observer):
    """Writes ``online_train``, ``online_linear`` and ``online_knn``, each in [0, 1], into the metrics of a run.

    ``online_train`` is the accuracy of the classifier on training images just before it is trained on them; the others
    are measured at some twenty moments on held-out images as evaluation sees them. The features are scaled by a
    BatchNorm without parameters, so that one rate of Adam fits all encoders.

    Raises:
        DataError: the images have no labels, or are too few to hold a fifth out.
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

    def observe(self, encoder: nn.Module) -> dict[str, float]:
        knn, test = neighbour_accuracy(encoder, self._bank, self._queries, self._data, device=self._device)
        if self._probe is None:
            return {"online_knn": knn}
        predicted = self._probe.eval()(test.vectors[""].to(self._device)).argmax(1).cpu()
        return {"online_knn": knn, "online_linear": accuracy(predicted, test.labels)}

    def state_dict(self) -> dict[str, Tensor]:
        if self._probe is None:
            return {}
        probe = {f"probe.{name}": value for name, value in self._probe.state_dict().items()}
        moments = self._optimizer.state_dict()["state"]
        return probe | {"counts": self._counts} | {f"{i}.{k}": v for i, one in moments.items() for k, v in one.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        probe = {name.removeprefix("probe."): value for name, value in state.items() if name.startswith("probe.")}
        self._start(probe["1.weight"].shape[1]).load_state_dict(probe)
        self._counts.copy_(state["counts"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            index, _, key = name.partition(".")
            if index.isdigit():
                moments.setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": moments})
