"""Chooses the training images that keep their labels: a few or a fraction of every class, or all, drawn by seed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from matrix_ssl.data import Source
from matrix_ssl.evaluate.probes.low_shot import draw_labelled
from matrix_ssl.evaluate.trained.label_subsets import store, stratified

_SHOTS, _PARTS = (1, 5, 10), (1, 10)  # per class: images, and percent


@dataclass(frozen=True)
class Budget:
    """A number of labels."""

    key: str  # in files
    text: str  # in sentences
    images: tuple[NDArray[np.int64], ...]  # by seed: increasing indices into the training images

    @property
    def count(self) -> int:
        """The number of labelled images of all classes together."""
        return len(self.images[0])


def budgets(source: Source, seeds: int) -> tuple[list[Budget], list[str]]:
    """The distinct numbers of labels for this dataset, fewest first, and why others are left out.

    The subsets depend only on labels and seed, so all arms get the same ones; all classes have labels.

    Raises:
        DataError: the images have no labels, or a class has no image.
    """
    labels = source.labelled()[0]
    everything = np.arange(len(source))
    chosen, left_out = [], []
    fewest = int(np.bincount(labels).min())
    for shots in _SHOTS:
        name = f"{shots} label{'s' * (shots > 1)} a class"
        if shots >= fewest:
            verb = "is" if shots == 1 else "are"
            left_out.append(f"{name} {verb} left out: a class has {fewest} training image{'s' * (fewest != 1)}.")
            continue
        draws = (draw_labelled(torch.from_numpy(labels), shots=shots, draw=seed, seed=0) for seed in range(seeds))
        chosen.append(Budget(f"labels_{shots}", name, tuple(np.sort(draw.numpy()) for draw in draws)))
    for percent in _PARTS:
        subsets = tuple(stratified(source, percent / 100, seed=seed) for seed in range(seeds))
        chosen.append(Budget(f"percent_{percent}", f"{percent} % of the labels", subsets))
    chosen.append(Budget("all", "all labels", (everything,) * seeds))
    different: dict[int, Budget] = {}
    for budget in chosen:
        if budget.count in different:
            left_out.append(f"{budget.text} are left out: as many as {different[budget.count].text}.")
        else:
            different[budget.count] = budget
    return sorted(different.values(), key=lambda budget: budget.count), left_out


def keep(folder: Path, source: Source, budget: Budget) -> None:
    """Writes the labelled images of every seed as lists of names for ``matrix-ssl evaluate --label-list``."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, images in enumerate(budget.images):
        store(folder / f"{budget.key}-seed-{seed}.txt", source, images)
