"""Named datasets: the digits of scikit-learn, and those that torchvision downloads."""

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from matrix_ssl.data.base import MemorySource, Places, as_labels
from matrix_ssl.errors import DataError

TORCHVISION_SETS = ("cifar10", "cifar100", "stl10", "stl10-unlabeled")
NAMED_SETS = ("digits", *TORCHVISION_SETS)
DATA_ROOT_VARIABLE = "MATRIX_SSL_DATA"
HUGGING_FACE = "hf:"  # prefix of the name or folder of a Hugging Face dataset
IN_MEMORY = "memory:"  # prefix of ``data.source`` if the images were in the memory of a program
Split = Literal["train", "test"]

_DIGITS_TEST = 360


def is_name(name: str) -> bool:
    """Whether a dataset is given by name, not by path."""
    return name in NAMED_SETS or name.startswith((HUGGING_FACE, IN_MEMORY))


def open_digits(split: Split) -> MemorySource:
    """scikit-learn's 8x8 digits, with grey levels scaled to 0 to 255, in a fixed stratified split of 1437 and 360."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = digits.target.astype(np.int64)
    places = Places.whole(["digits"], [len(labels)])
    everything = MemorySource("digits", images, places, labels=labels, classes=[str(digit) for digit in range(10)])
    rows = train_test_split(np.arange(len(labels)), test_size=_DIGITS_TEST, stratify=labels, random_state=0)
    return everything.subset(np.sort(rows[("train", "test").index(split)]))


def open_torchvision(name: str, split: Split, *, folder: Path, download: bool) -> MemorySource:
    """A dataset in torchvision's layout, which opens pickles (CIFAR) only if they have the published checksums."""
    from torchvision import datasets

    try:
        with warnings.catch_warnings():  # the CIFAR files were written by a NumPy of Python 2
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            if name.startswith("cifar"):
                reader = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
                loaded = reader(folder, train=split == "train", download=download)
                pixels, targets = loaded.data.transpose(0, 3, 1, 2), loaded.targets  # from (n, h, w, c)
            else:
                labelled = name == "stl10"
                loaded = datasets.STL10(folder, split=split if labelled else "unlabeled", download=download)
                pixels, targets = loaded.data, loaded.labels if labelled else None  # (n, c, h, w)
    except (OSError, RuntimeError) as error:
        if download:
            raise DataError(
                f"{name}: the download to {folder} failed ({error}); try again or copy the files there."
            ) from None
        raise DataError(
            f"{name} is not in {folder}, neither as a folder {name!r} of images or packed files nor as torchvision "
            f"downloads it; name the right folder (--data-root or {DATA_ROOT_VARIABLE}) or fetch it with --download."
        ) from None
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    places = Places.whole([f"{name}/{split}"], [len(images)])
    if targets is None:
        return MemorySource(name, images, places, labels=None, classes=None)
    labels, classes = as_labels(targets, loaded.classes, len(images), where=name)
    return MemorySource(name, images, places, labels=labels, classes=classes)
